"""The prompt behind which the model is surest of what follows the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idp import config
from idp.config import option
from idp.prompting.repaired import head_is_bare, logits_at
from idp.prompting.selectors.base import Selector
from idp.prompting.selectors.likelihood import copies, together

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from idp.prompting.prefix import Prefixes


@dataclass
class ConfidenceSelector(config.Selector):
    tokens: int = option("last tokens of the input behind which the next one is predicted; 1: at its end", minimum=1)

    @property
    def passes(self) -> int:
        return 1

    def build(self) -> Confidence:
        return Confidence(self.tokens)


class Confidence(Selector):
    """`s_i = - mean over the last k tokens t of the entropy of p(. | prompt i, x_<=t)`, in nats.

    At the end of a question (k = 1) that is the distribution of the answer's first token. All prompts are tried in one
    forward pass over m copies of the input, packed without padding; the head sees k places of each.

    Args:
        tokens: k; an input of fewer is read at all of them.
    """

    def __init__(self, tokens: int = 1):
        self.tokens = tokens

    def bind(self, model: PreTrainedModel, prefixes: Prefixes) -> None:
        super().bind(model, prefixes)
        self.bare = head_is_bare(model)

    def scores(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        import torch

        m = len(self.prefixes.lengths)
        found = [self._of_part(part) for part in together(contexts, m)]
        return torch.cat(found) if found else torch.empty(0, m)

    def _of_part(self, contexts: list[list[int]]) -> torch.Tensor:
        import torch

        m, device = len(self.prefixes.lengths), self.prefixes.lengths.device
        rows, packed = copies(self.model, self.prefixes, contexts)
        counts = [min(self.tokens, len(row)) for row in rows]
        places = [
            start + len(row) - count + place
            for start, row, count in zip(packed.starts, rows, counts, strict=True)
            for place in range(count)
        ]
        entropies = torch.empty(len(places), device=device)
        with torch.inference_mode():
            for start, logits in logits_at(self.model, packed, torch.tensor(places), self.prefixes, self.bare):
                logs = logits.float().log_softmax(dim=-1)
                entropies[start : start + len(logits)] = -(logs.exp() * logs).nan_to_num(0.0).sum(-1)
        sizes = torch.tensor(counts, device=device)
        means = torch.segment_reduce(entropies, "mean", lengths=sizes, axis=0)
        return -means.view(m, len(contexts)).t()
