"""Next-token distributions cut to their most likely tokens, and to some that are drawn from the others, their tails."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DRAWN = 32  # of each tail


def cut(
    logs: torch.Tensor, offsets: torch.Tensor, top: int, drawn: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Distributions cut to their most likely tokens and some that are drawn from the others.

    Args:
        logs: [positions, vocabulary], log-probabilities, float32; overwritten.
        offsets: [positions], from 0 to 1: where in its tail a position's tokens are drawn.
        top: how many of the most likely tokens are kept.
        drawn: how many are drawn; none where the vocabulary has no more than `top`.

    Returns:
        the tokens, [positions, top + drawn], the most likely ones ascending; their log-probabilities; and [positions],
        the log of the tail's mass, -inf where there is none.
    """
    import torch

    top = min(top, logs.shape[1])
    ids = logs.topk(top, sorted=False).indices.sort(dim=1).values
    kept = logs.gather(1, ids)
    logs.scatter_(1, ids, -math.inf)
    rest = logs.logsumexp(dim=1)
    if top < logs.shape[1]:
        more = _drawn(logs, rest, offsets, drawn)
        ids, kept = torch.cat([ids, more], dim=1), torch.cat([kept, logs.gather(1, more)], dim=1)
    return ids, kept, rest


def _drawn(logs: torch.Tensor, rest: torch.Tensor, offsets: torch.Tensor, count: int) -> torch.Tensor:
    """Tokens drawn from tails, `count` of each, as often as they are likely: [positions, count].

    They are drawn at even distances along the tail's mass, from one random offset: each draw by itself follows the
    tail's probabilities, and all together vary less than independent ones.

    Args:
        logs: [positions, vocabulary], -inf at the tokens that are not of the tail.
        rest: [positions], the log of the tail's mass.
        offsets: [positions], from 0 to 1.
        count: how many of each.
    """
    import torch

    mass = (logs - rest.nan_to_num(neginf=0.0)[:, None]).exp_().cumsum(dim=1)
    points = (torch.arange(count, device=logs.device) + offsets[:, None]) / count
    below = points.clamp(max=1 - 1e-6) * mass[:, -1:]  # at its very end rounding would find a token of no mass
    return torch.searchsorted(mass, below, right=True).clamp_(max=logs.shape[1] - 1)
