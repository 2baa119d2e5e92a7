"""Inputs that no calibration token ever moves: they make a layer's Hessian singular."""

from __future__ import annotations

from typing import Any

import torch
from llmcompressor.modifiers import Modifier
from pydantic import PrivateAttr
from torch import nn

from idp.compress import guard


class DeadInputsModifier(Modifier):
    """Counts, for each named layer, the inputs that are zero for every calibration token; changes nothing.

    It sees every input of every layer, so that it is also what refuses those with a NaN or an infinity.

    GPTQ and SparseGPT treat such an input as the papers' code does: its diagonal of the Hessian becomes 1 and its
    column of weights 0. That is right for the calibration text and may be wrong for another, so it is said.
    """

    names: list[str]
    requires_calibration_data: bool = True

    _alive: dict[str, torch.Tensor] = PrivateAttr(default_factory=dict)
    _all_alive: set[str] = PrivateAttr(default_factory=set)

    @property
    def counts(self) -> dict[str, int]:
        """The number of dead inputs of each layer that has any."""
        dead = {name: int((~alive).sum()) for name, alive in self._alive.items()}
        return {name: count for name, count in dead.items() if count}

    def on_initialize(self, state: Any, **kwargs: Any) -> bool:
        return True

    def on_calibration_start(self, state: Any, event: Any, **kwargs: Any) -> None:
        for name in self.names:

            def watch(module: nn.Module, arguments: tuple[torch.Tensor, ...], output: Any, name: str = name) -> None:
                guard.refuse_not_finite(arguments[0], f"the input of {name}", module.weight.dtype)
                if name in self._all_alive:  # nearly every layer, from its first batch on
                    return
                moved = (arguments[0] != 0).flatten(0, -2).any(dim=0)
                self._alive[name] = moved | self._alive[name] if name in self._alive else moved
                if bool(self._alive[name].all()):
                    self._all_alive.add(name)

            self.register_hook(state.model.get_submodule(name), watch, "forward")

    def on_calibration_end(self, state: Any, event: Any, **kwargs: Any) -> None:
        self.remove_hooks()
