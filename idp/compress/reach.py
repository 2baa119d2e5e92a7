"""How many calibration tokens reach a layer, and what is done where they are too few to say anything about it.

The router of a mixture of experts sends each token to a few experts. An expert that next to none reaches has no inputs
to be calibrated on: GPTQ would leave it alone, its grid unset, and Wanda and SparseGPT would call all its inputs dead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from idp.compress.activations import Observer

if TYPE_CHECKING:
    import torch
    from torch import nn

LEAST = 64  # tokens for a norm per input, as Wanda takes it


class Reach(Observer):
    """Counts a layer's calibration tokens; where there are too few, calibrates it on the identity instead.

    With `X = I` every input counts alike and none tells of another: GPTQ is rounding to nearest, Wanda and SparseGPT
    prune by magnitude. Too few is fewer tokens than a Hessian has columns, which is then singular, or fewer than
    `LEAST` for Wanda. It is told before the modifiers whose statistics it replaces.

    Args:
        tokens: all that there are; a layer that gets every one of them is calibrated however few they are.
        modifiers: of llmcompressor; of these, the ones that calibrate the layers.
    """

    def __init__(self, tokens: int, modifiers: Sequence[Any] = ()):
        self.tokens, self.count, self.few = tokens, 0, False
        self._behind = [each for each in modifiers if hasattr(each, "calibrate_module")]

    @property
    def whole(self) -> bool:
        """Whether every calibration token reached the layer."""
        return self.count >= self.tokens

    def see(self, layer: nn.Linear, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        self.count += len(inputs)

    def finish(self, layer: nn.Linear) -> None:
        if self.whole:
            return
        for modifier in self._behind:
            if self.count < _least(modifier, layer):
                self.few = True
                _calibrate_on_identity(modifier, layer)


def _least(modifier: Any, module: nn.Linear) -> int:
    return module.in_features if hasattr(modifier, "_hessians") else LEAST


def _calibrate_on_identity(modifier: Any, module: nn.Linear) -> None:
    import torch

    for statistics in ("_hessians", "_row_scalars", "_num_samples"):
        getattr(modifier, statistics, {}).pop(module, None)
    identity = torch.eye(module.in_features, dtype=module.weight.dtype, device=module.weight.device)
    modifier.calibrate_module(module, (identity,), None)
