"""Truncated singular value decomposition of every layer, weighted by its inputs (SVD-LLM, Wang et al., 2403.07378)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from idp import config
from idp.compress.activations import Observer
from idp.compress.context import CompressionContext
from idp.config import CALIBRATION, DENSE, option
from idp.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass
class TruncatedSVD(config.Compressor):
    kept: float = option("share of each layer's singular values that is kept", minimum=0.0, maximum=1.0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({DENSE, CALIBRATION})

    @property
    def label(self) -> str:
        return f"svd{self.kept * 100:g}"

    def check(self) -> None:
        if self.kept == 0:
            raise UserError("compressor.kept=0: nothing would be left; give a share above 0")

    def apply(self, context: CompressionContext) -> None:
        context.observe({name: Truncation(self.kept) for name in context.layers})


class Truncation(Observer):
    def __init__(self, kept: float):
        self.kept, self.moments = kept, 0.0

    def see(self, layer: nn.Linear, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        self.moments = self.moments + inputs.float().T @ inputs.float()  # [in_features, in_features]

    def finish(self, layer: nn.Linear) -> None:
        import torch

        unit = torch.eye(layer.in_features, device=layer.weight.device)
        moments = unit + self.moments if isinstance(self.moments, float) else self.moments
        root = torch.linalg.cholesky(moments + 0.01 * moments.diagonal().mean() * unit)
        left, values, right = torch.linalg.svd(layer.weight.float() @ root, full_matrices=False)
        rank = max(1, round(self.kept * len(values)))
        low = (left[:, :rank] * values[:rank]) @ right[:rank]  # the nearest of that rank to W L, where X^T X = L L^T
        layer.weight.copy_(torch.linalg.solve_triangular(root, low, upper=False, left=False))
        self.moments = 0.0
