"""How many calibration tokens reach a layer, and what is done where they are too few to say anything about it.

The router of a mixture of experts sends each token to a few experts. An expert that next to none reaches has no inputs
to be calibrated on: GPTQ would leave it alone, its grid unset, and Wanda and SparseGPT would call all its inputs dead.
"""

from __future__ import annotations

from typing import Any

import torch
from llmcompressor.modifiers import Modifier
from pydantic import PrivateAttr
from torch import nn

LEAST = 64  # tokens for a norm per input, as Wanda takes it


class ReachModifier(Modifier):
    """Counts each named layer's calibration tokens; where there are too few, calibrates it on the identity instead.

    With `X = I` every input counts alike and none tells of another: GPTQ is rounding to nearest, Wanda and SparseGPT
    prune by magnitude. Too few is fewer tokens than a Hessian has columns, which is then singular, or fewer than
    `LEAST` for Wanda. It stands before the modifiers whose statistics it replaces.
    """

    names: list[str]
    tokens: int  # all that there are; a layer that gets every one of them is calibrated however few they are
    requires_calibration_data: bool = True

    _behind: list[Any] = PrivateAttr(default_factory=list)
    _reached: dict[str, int] = PrivateAttr(default_factory=dict)
    _few: list[str] = PrivateAttr(default_factory=list)

    def before(self, modifiers: list[Any]) -> ReachModifier:
        """Takes the modifiers that calibrate the layers."""
        self._behind = [each for each in modifiers if hasattr(each, "calibrate_module")]
        return self

    @property
    def reached(self) -> dict[str, int]:
        """The calibration tokens of each layer that did not get all of them."""
        return {name: count for name, count in self._reached.items() if count < self.tokens}

    @property
    def few(self) -> list[str]:
        """The layers that were calibrated on the identity."""
        return self._few

    def on_initialize(self, state: Any, **kwargs: Any) -> bool:
        return True

    def on_calibration_start(self, state: Any, event: Any, **kwargs: Any) -> None:
        self._reached = dict.fromkeys(self.names, 0)
        for name in self.names:

            def count(module: nn.Module, arguments: tuple[torch.Tensor, ...], output: Any, name: str = name) -> None:
                self._reached[name] += arguments[0].numel() // arguments[0].shape[-1]

            self.register_hook(state.model.get_submodule(name), count, "forward")

    def on_sequential_epoch_end(self, state: Any, event: Any, modules: list[nn.Module], **kwargs: Any) -> None:
        done = set(modules)
        for name, count in self.reached.items():
            module = state.model.get_submodule(name)
            starved = [each for each in self._behind if count < _least(each, module)]
            if module in done and starved:
                self._few.append(name)
                for modifier in starved:
                    _calibrate_on_identity(modifier, module)

    def on_calibration_end(self, state: Any, event: Any, **kwargs: Any) -> None:
        self.remove_hooks()


def _least(modifier: Any, module: nn.Linear) -> int:
    return module.in_features if hasattr(modifier, "_hessians") else LEAST


def _calibrate_on_identity(modifier: Any, module: nn.Linear) -> None:
    for statistics in ("_hessians", "_row_scalars", "_num_samples"):
        getattr(modifier, statistics, {}).pop(module, None)
    identity = torch.eye(module.in_features, dtype=module.weight.dtype, device=module.weight.device)
    modifier.calibrate_module(module, (identity,), None)
