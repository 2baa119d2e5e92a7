"""The low-rank update of a linear layer that best makes up for an error of its weight, in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def correction(
    weight_error: torch.Tensor, second_moment: torch.Tensor, rank: int, damping: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The B A of a rank that minimises `tr (E - B A) S (E - B A)'`, the error of the layer's outputs on its inputs.

    With S = L L' it is the truncated singular value decomposition of E L times the inverse of L (Eckart and Young;
    EoRA, 2410.21271). Its left singular vectors U are the first eigenvectors of E S E', and B A = U U' E needs no
    inverse; its right ones are those of L' E' E L. The smaller of both matrices is taken.

    Args:
        weight_error: E [out, in], the dense weight less the compressed one.
        second_moment: S [in, in] of the layer's inputs, X'X.
        rank: of the update; at most the smaller side of E.
        damping: added to the diagonal of S, as a share of its mean.

    Returns:
        A [rank, in] and B [out, rank], float64, on the device of the error.
    """
    import torch

    error, moment = weight_error.double(), second_moment.to(weight_error.device).double().clone()
    moment.diagonal().add_(max(damping * float(moment.diagonal().mean()), torch.finfo(torch.float64).tiny))
    if error.shape[0] <= error.shape[1]:
        b = _first(error @ moment @ error.T, rank)
        return b.T @ error, b
    root, short = torch.linalg.cholesky_ex(moment)
    if int(short):
        raise ValueError(f"a second moment of the inputs is not positive definite with damping {damping:g}")
    outputs = error @ root
    right = _first(outputs.T @ outputs, rank)
    return torch.linalg.solve_triangular(root, right.T, upper=False, left=False), outputs @ right


def _first(matrix: torch.Tensor, count: int) -> torch.Tensor:
    """The eigenvectors [size, count] of a symmetric matrix's greatest eigenvalues, the greatest first."""
    import torch

    return torch.linalg.eigh(matrix).eigenvectors[:, -count:].flip(1)
