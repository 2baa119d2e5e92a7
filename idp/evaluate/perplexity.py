"""Perplexity of running text, over the same real tokens for every method."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from idp.evaluate.batching import Request

if TYPE_CHECKING:
    import torch

    from idp.evaluate.scorer import Scorer


def perplexity(scorer: Scorer, windows: torch.Tensor) -> dict[str, float | int]:
    """Perplexity over windows of text, as in the GPTQ literature.

    Each window stands alone and predicts its tokens but the first. A prompt goes in front of the window; its own
    positions predict nothing that is counted, so a prompt that does nothing changes nothing. (An evaluator that
    counts them as zero loss reports 8.9 % less for a prompt that does nothing.)

    A selector reads the first tokens of a window, which are then scored like all others: where the choice follows
    likelihood, that is a peek at 32 tokens of each window.

    Args:
        scorer: the model.
        windows: [windows, tokens].

    Returns:
        `perplexity`, `nll` (mean in nats per token), `stderr` of that mean over windows, `tokens` counted, `window`.
    """
    length = windows.shape[1]
    rows = windows.tolist()
    scores = scorer.score_windows([Request(row[:1], row[1:]) for row in rows])
    means = [-value / (length - 1) for value, _ in scores]
    nll = math.fsum(means) / len(means)
    spread = math.fsum((mean - nll) ** 2 for mean in means) / max(len(means) - 1, 1)
    return {
        "perplexity": math.exp(nll),
        "nll": nll,
        "stderr": math.sqrt(spread / len(means)),
        "tokens": len(means) * (length - 1),
        "window": length,
    }
