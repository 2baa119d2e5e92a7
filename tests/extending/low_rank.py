"""A closed-form repair: of each layer the rank-r correction that best brings its dense outputs back.

With X the layer's inputs on calibration text and S = X'X = L L', the B A that minimises ||X (W_dense - W - B A)'|| is
the truncated singular value decomposition of (W_dense - W) L, times the inverse of L (Eckart and Young).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from idp import config
from idp.compress.activations import Observer
from idp.config import CALIBRATION, DENSE, WEIGHTS, option
from idp.recover.context import RepairContext, RepairResult

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass
class LowRank(config.Recovery):
    rank: int = option("rank of each layer's correction", minimum=1)

    needs: ClassVar[frozenset[str]] = frozenset({CALIBRATION, DENSE, WEIGHTS})
    adapts: ClassVar[bool] = True

    def make(self, context: RepairContext) -> RepairResult:
        from idp.compress.activations import observe
        from idp.compress.recipe import compressed_layers

        model, dense = context.loaded.model, context.dense().model
        corrections = {
            name: Correction(dense.get_submodule(name).weight, self.rank) for name in compressed_layers(model)
        }
        observe(model, context.calibration, corrections)
        return RepairResult(low_rank={name: each.pair for name, each in corrections.items()})


class Correction(Observer):
    def __init__(self, weight: torch.Tensor, rank: int):
        self.weight, self.rank, self.moment = weight, rank, 0

    def see(self, layer: nn.Linear, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        self.moment = self.moment + inputs.double().T @ inputs.double()  # [in, in]

    def finish(self, layer: nn.Linear) -> None:
        import torch

        damping = 1e-6 * self.moment.diagonal().mean() * torch.eye(len(self.moment), device=self.moment.device)
        root = torch.linalg.cholesky(self.moment + damping)
        left, sizes, right = torch.linalg.svd((self.weight - layer.weight).double() @ root, full_matrices=False)
        a = torch.linalg.solve_triangular(root, right[: self.rank], upper=False, left=False)
        self.pair, self.moment = (a, left[:, : self.rank] * sizes[: self.rank]), 0
