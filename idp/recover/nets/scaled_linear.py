"""Linear layers whose quantisation scales are trained: the weight is made of whole numbers and scales in each pass.

Kept for the backward pass are the layer's inputs, the scales and the whole numbers, which all passes share; the weight,
as large as the model's own, is made anew there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from idp.recover.rescaling import Rescaled, weight_of


class ScaledLinear(torch.autograd.Function):
    """`inputs @ weight.T + bias` with `weight = steps * scale`, whose gradient by a scale is the sum over its group of
    the weight's gradient times the steps."""

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, scale: torch.Tensor, steps: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Outputs [..., out] of inputs [..., in]; scale [out, groups], steps [out, in], bias [out]."""
        ctx.save_for_backward(inputs, scale, steps)
        return nn.functional.linear(inputs, weight_of(steps, scale), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, scale, steps = ctx.saved_tensors
        of_inputs = gradient @ weight_of(steps, scale) if ctx.needs_input_grad[0] else None
        of_scale = None
        if ctx.needs_input_grad[1]:
            of_weight = gradient.flatten(0, -2).T @ inputs.flatten(0, -2)  # [out, in]
            summands = of_weight.float().mul_(steps).unflatten(1, (scale.shape[1], -1))
            of_scale = summands.sum(dim=-1).to(scale.dtype)
        return of_inputs, of_scale, None, None


class ScaledLayer:
    """A quantised layer while its scales are trained.

    Trained is the `change`, relative to the scale that was: scale = rounded(before * (1 + change)), in the dtype of the
    layer's weight, in which packed scales are stored. So one learning rate suits scales of all sizes, and weight decay
    pulls toward the scales that were.

    Args:
        module: the layer.
        before: its scales, [out, groups], in the dtype of its weight.
        steps: its codes less their zero points, [out, in], integers.
    """

    def __init__(self, module: nn.Linear, before: torch.Tensor, steps: torch.Tensor):
        self.module, self.before, self.steps = module, before.float(), steps
        self.change = nn.Parameter(torch.zeros_like(self.before))

    @property
    def scale(self) -> torch.Tensor:
        """The scales as they are now, [out, groups], in the weight's dtype; gradients flow through the rounding."""
        return (self.before * (1 + self.change)).to(self.module.weight.dtype)

    @torch.no_grad()
    def rescaled(self, zero_point: torch.Tensor) -> Rescaled:
        """The scales as they were and as they are, on the CPU; `zero_point` [out, groups] is what they go with."""
        return Rescaled(self.before.to(self.module.weight.dtype).cpu(), self.scale.cpu(), zero_point.cpu())

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return ScaledLinear.apply(inputs, self.scale, self.steps, self.module.bias)


@contextlib.contextmanager
def scaled(layers: Iterable[ScaledLayer]) -> Iterator[None]:
    """A block in which the modules of these layers compute with the scales that are trained."""
    layers = list(layers)
    before = [layer.module.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.module.forward = layer.__call__
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                layer.module.__dict__.pop("forward", None)
            else:
                layer.module.forward = forward
