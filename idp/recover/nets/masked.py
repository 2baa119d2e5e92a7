"""A linear layer whose low-rank update leaves the zeros of its weight where they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def masked_weight(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """W + M * (scale * B A) with M = (W != 0), [out, in] in W's dtype; each zero of W is one of it.

    Args:
        weight: W, [out, in].
        a: A, [rank, in].
        b: B, [out, rank].
        scale: of the update.
    """
    updated = torch.addmm(weight.to(a.dtype), b, a, alpha=scale)
    return updated.to(weight.dtype).masked_fill_(weight == 0, 0)


class MaskedLinear(nn.Module):
    """A frozen linear layer with a trained update, in its place while it is trained: y = (W + M * (scale * B A)) x + c.

    Args:
        layer: the layer, whose weight is [out, in].
        a, b: float32 parameters, as for `masked_weight`.
        scale: of the update.
    """

    def __init__(self, layer: nn.Linear, a: nn.Parameter, b: nn.Parameter, scale: float):
        super().__init__()
        self.layer, self.a, self.b, self.scale = layer, a, b, scale

    @property
    def weight(self) -> torch.Tensor:
        """The frozen weight, for code that asks a layer for its dtype or device."""
        return self.layer.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = _Masked.apply(inputs, self.layer.weight, self.a, self.b, self.scale)
        return found if self.layer.bias is None else found + self.layer.bias


class _Masked(torch.autograd.Function):
    """Neither the updated weight nor its gradient outlives the pass that needs it: kept are the inputs alone."""

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight, a, b)
        ctx.scale = scale
        return nn.functional.linear(inputs, masked_weight(weight, a, b, scale))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weight, a, b = ctx.saved_tensors
        (upward,) = gradients
        of_inputs = of_a = of_b = None
        if ctx.needs_input_grad[0]:
            of_inputs = upward @ masked_weight(weight, a, b, ctx.scale)
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            of_weight = upward.flatten(0, -2).T @ inputs.flatten(0, -2)  # [out, in]
            of_update = of_weight.masked_fill_(weight == 0, 0).to(a.dtype).mul_(ctx.scale)
            of_a, of_b = b.T @ of_update, of_update @ a.T
        return of_inputs, None, of_a, of_b, None
