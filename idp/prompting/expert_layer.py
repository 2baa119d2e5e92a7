"""A linear layer with low-rank experts: all of them in two products, whichever expert each row goes by."""

from __future__ import annotations

import torch
from torch import nn

from idp.prompting.following import followed


class ExpertLinear(nn.Module):
    """`y = W x + sum_e w_e B_e (A_e x)`, w as `following.followed` says of x's row; `W x` alone where it says None.

    The experts' A stand one below the other, [experts * rank, in], and their B side by side, [out, experts * rank]: a
    token costs experts * rank * (in + out) products more, and no row waits for another.
    """

    def __init__(self, base_layer: nn.Linear, a: torch.Tensor, b: torch.Tensor):
        """Takes the layer and what is added to it.

        Args:
            base_layer: the layer.
            a: [experts, rank, in].
            b: [experts, out, rank].
        """
        super().__init__()
        self.base_layer = base_layer
        self.experts, self.rank = a.shape[:2]
        weight = base_layer.weight
        a, b = (tensor.to(weight.device, weight.dtype) for tensor in (a.flatten(0, 1), b.transpose(0, 1).flatten(1)))
        self.a, self.b = (nn.Parameter(tensor.contiguous(), requires_grad=False) for tensor in (a, b))

    @property
    def weight(self) -> torch.Tensor:
        """That of the layer itself."""
        return self.base_layer.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """That of the layer itself."""
        return self.base_layer.bias

    def update(self, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One expert's A [rank, in] and B [out, rank]."""
        own = slice(expert * self.rank, (expert + 1) * self.rank)
        return self.a[own], self.b[:, own]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer makes of x, [..., in], whose tokens are in the order of their rows."""
        y, mixture = self.base_layer(x), followed()
        if mixture is None:
            return y
        inner = nn.functional.linear(x, self.a)
        tokens, rows = inner.numel() // inner.shape[-1], len(mixture)
        if tokens % rows:
            raise RuntimeError(f"{tokens} tokens of {rows} rows: a layer of a mixture sees some rows' tokens only")
        weights = mixture.to(inner.device, inner.dtype)
        mixed = inner.view(rows, tokens // rows, self.experts, self.rank) * weights[:, None, :, None]
        return y + nn.functional.linear(mixed.view_as(inner), self.b)
