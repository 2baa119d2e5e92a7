"""What joint compression is compared with: llmcompressor's GPTQ, and behind it the pruner's mask once more."""

from __future__ import annotations

from typing import Any

import torch
from llmcompressor.modifiers import Modifier
from pydantic import PrivateAttr


class RememberZeros(Modifier):
    """Between pruner and quantiser: keeps where the pruner left zeros."""

    names: list[str]
    _modules: set[torch.nn.Module] = PrivateAttr(default_factory=set)
    _zeros: dict[torch.nn.Module, torch.Tensor] = PrivateAttr(default_factory=dict)

    def on_initialize(self, state: Any, **_: Any) -> bool:
        self._modules = {state.model.get_submodule(name) for name in self.names}
        return True

    def on_sequential_epoch_end(self, state: Any, event: Any, modules: Any, **_: Any) -> None:
        self._zeros = {module: module.weight.data == 0 for module in modules if module in self._modules}


class ZeroAgain(Modifier):
    """Behind the quantiser: sets to zero what its error compensation moved."""

    remembered: RememberZeros

    def on_initialize(self, state: Any, **_: Any) -> bool:
        return True

    def on_sequential_epoch_end(self, state: Any, event: Any, modules: Any, **_: Any) -> None:
        for module, zeros in self.remembered._zeros.items():
            module.weight.data[zeros] = 0


def mask_after(modifiers: list[Modifier], names: list[str]) -> list[Modifier]:
    """A pruner and a quantiser with the mask applied again after each layer.

    Args:
        modifiers: llmcompressor's own, pruner first.
        names: the layers that are compressed.
    """
    remember = RememberZeros(names=names)
    return [modifiers[0], remember, *modifiers[1:], ZeroAgain(remembered=remember)]
