"""Inputs that no calibration token ever moves: they make a layer's Hessian singular."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idp.compress.activations import Observer

if TYPE_CHECKING:
    import torch
    from torch import nn


class DeadInputs(Observer):
    """Counts the inputs of a layer that are zero for every calibration token.

    GPTQ and SparseGPT treat such an input as the papers' code does: its diagonal of the Hessian becomes 1 and its
    column of weights 0. That is right for the calibration text and may be wrong for another, so it is said.
    """

    def __init__(self) -> None:
        self._alive: torch.Tensor | None = None  # [in_features]
        self._all_alive = False

    @property
    def count(self) -> int:
        return int((~self._alive).sum()) if self._alive is not None else 0

    def see(self, layer: nn.Linear, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        if self._all_alive:  # nearly every layer, from its first batch on
            return
        moved = (inputs != 0).any(dim=0)
        self._alive = moved if self._alive is None else moved | self._alive
        self._all_alive = bool(self._alive.all())
