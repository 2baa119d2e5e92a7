"""Magnitude pruning: the baseline that looks at nothing but the weights.

llmcompressor's own modifier follows a training schedule and masks while an optimizer steps; in one shot there is
neither, and what is left of the method is one line per layer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from compressed_tensors.utils import update_offload_parameter
from llmcompressor.modifiers import Modifier
from pydantic import PrivateAttr
from torch import nn

from idp.config import n_of_m


def smallest(weight: torch.Tensor, level: float, pattern: str | None) -> torch.Tensor:
    """The mask [rows, columns] of the weights to set to zero: the smallest of a layer, or of every M in a row.

    At least `level` of them; of equal magnitudes the earlier go first, so that the count is exact.
    """
    size = weight.float().abs()
    mask = torch.zeros_like(weight, dtype=torch.bool)
    if pattern is not None:
        keep, of = n_of_m(pattern)
        order = size.view(-1, of).argsort(dim=1, stable=True)
        return mask.view(-1, of).scatter_(1, order[:, : of - keep], True).view_as(weight)
    count = math.ceil(level * weight.numel() - 1e-9)
    order = size.flatten().argsort(stable=True)
    return mask.view(-1).index_fill_(0, order[:count], True).view_as(weight)


class MagnitudeModifier(Modifier):
    """Sets the smallest weights of each named layer to zero, as soon as its decoder layer's turn comes."""

    names: list[str]
    level: float
    pattern: str | None = None

    _layers: set[nn.Module] = PrivateAttr(default_factory=set)

    def on_initialize(self, state: Any, **kwargs: Any) -> bool:
        self._layers = {state.model.get_submodule(name) for name in self.names}
        return True

    def on_sequential_epoch_end(self, state: Any, event: Any, modules: list[nn.Module], **kwargs: Any) -> None:
        for module in modules:
            if module in self._layers:
                pruned = module.weight.masked_fill(smallest(module.weight, self.level, self.pattern), 0)
                update_offload_parameter(module, "weight", pruned)
