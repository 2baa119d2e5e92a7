"""A layer's best low-rank update for each of several parts of the calibration text, from one pass over all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from idp.compress.activations import Observer
from idp.recover.closed_form import best_update

if TYPE_CHECKING:
    import torch
    from torch import nn

    from idp.prompting.experts import Update


class CorrectionOptions(Protocol):
    """How the closed form is taken."""

    experts: int
    rank: int
    damping: float
    shared: float  # how much of each second moment is that of all text


def belonging(members: list[torch.Tensor], blocks: torch.Tensor) -> torch.Tensor:
    """Whether each token is of each expert's text, [tokens, experts], in the order in which layers see them.

    Args:
        members: of each expert the numbers of its blocks.
        blocks: [blocks, tokens].
    """
    import torch

    belongs = torch.zeros(len(blocks), len(members), dtype=torch.bool)
    for expert, own in enumerate(members):
        belongs[own, expert] = True
    return belongs.repeat_interleave(blocks.shape[1], dim=0)


class Corrections(Observer):
    """One layer's update for each expert, `pairs`, once its inputs have passed.

    Args:
        weight: the dense one.
        belongs: [tokens of the calibration text, experts], whether a token is of an expert's text.
        options: of the closed form.
    """

    def __init__(self, weight: torch.Tensor, belongs: torch.Tensor, options: CorrectionOptions):
        self.weight, self.belongs, self.options = weight, belongs, options
        self.seen = 0
        self.moments: torch.Tensor | None = None

    def see(self, layer: nn.Linear, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        import torch

        size = inputs.shape[1]
        if self.moments is None:  # of each expert's inputs, and of all
            self.moments = torch.zeros(self.options.experts + 1, size, size, dtype=torch.float64, device=inputs.device)
        rows = self.belongs[self.seen : self.seen + len(inputs)].to(inputs.device)
        self.seen += len(inputs)
        inputs = inputs.double()
        for expert in range(self.options.experts):
            own = inputs[rows[:, expert]]
            self.moments[expert].addmm_(own.T, own)
        self.moments[-1].addmm_(inputs.T, inputs)

    def finish(self, layer: nn.Linear) -> None:
        assert self.moments is not None
        if self.seen != len(self.belongs):
            raise ValueError(f"a layer saw {self.seen} of {len(self.belongs)} tokens")
        counts, shared = self.belongs.sum(0).tolist(), self.options.shared
        every = self.moments[-1] / self.seen
        error = self.weight.to(layer.weight.device).double() - layer.weight.double()
        self.pairs: list[Update] = []
        for expert, count in enumerate(counts):
            moment = every if shared == 1 else (1 - shared) * self.moments[expert] / count + shared * every
            pair = best_update(error, moment, self.options.rank, self.options.damping)
            self.pairs.append((pair[0].float().cpu(), pair[1].float().cpu()))
        self.moments = None
