"""The score that the best prompt must be above for an input to follow it rather than none."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def threshold(scores: torch.Tensor, losses: torch.Tensor, without: torch.Tensor) -> torch.Tensor:
    """The threshold with which the chosen prompts lose least on held-out text, [1] float32.

    A text whose highest score is above it follows the prompt of that score, any other none. The best threshold lies
    between two texts' highest scores, below all of them or above: all are tried, of equal ones the highest is taken.
    Where it lies between two it is their middle; at an end it is the next number beyond the last text.

    Args:
        scores: [texts, prompts], without the empty prompt.
        losses: [texts, prompts], each text's loss behind each of them.
        without: [texts], its loss behind the empty prompt.
    """
    import torch

    best, chosen = scores.float().cpu().max(1)
    gained = without.double().cpu() - losses.double().cpu().gather(1, chosen[:, None])[:, 0]
    best, order = best.sort(descending=True)
    # What the first k texts gain by their prompts, for k = 0 and wherever a threshold can part the k-th from the next.
    gains = torch.cat([gained.new_zeros(1), gained[order].cumsum(0)])
    gains[1:-1][best[1:] == best[:-1]] = -torch.inf
    k = int(gains.argmax())
    if k == 0:
        found = best[0].nextafter(best.new_tensor(torch.inf))
    elif k == len(best):
        found = best[-1].nextafter(best.new_tensor(-torch.inf))
    else:
        found = (best[k - 1].double() + best[k].double()).float() / 2
    return found.view(1)
