"""The low-rank update that best brings a layer's dense outputs back, in closed form.

With X [tokens, in] a layer's inputs, S = X'X their second moment and E = W_dense - W the error of its weight, wanted is
the B A of rank r that minimises

    || X (E - B A)' ||^2  =  trace (E - B A) S (E - B A)'

EoRA (2410.21271) and QERA (2410.06040, theorem 2) give it as the truncated singular value decomposition of E S^(1/2),
times the inverse of that root. With U the r first left singular vectors, that is U U' E S^(1/2) S^(-1/2): so B = U and
A = U'E, and neither a root nor an inverse is taken. U are the eigenvectors of E S E', the second moment of what the
layer's outputs lack. A singular S, from inputs that are always zero, is no special case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def best_update(
    error: torch.Tensor, moment: torch.Tensor | None, rank: int, damping: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """A [rank, in] and B [out, rank], float64, whose product is the best update of that rank.

    The columns of B are orthogonal, the first of them the largest part of the error, and A's rows are as long as B's
    columns, so that both move alike where they are trained on.

    Args:
        error: W_dense - W, [out, in].
        moment: S, [in, in], of any scale; None, or all zero: nothing is known of the inputs, and each counts alike.
        rank: at most the smaller of out and in.
        damping: added to the diagonal of S, as a share of its mean: the larger, the more the update is that of the
            weight alone, whatever the inputs were.
    """
    import torch

    error = error.double()
    rows, columns = error.shape
    if not 0 < rank <= min(rows, columns):
        raise ValueError(f"a matrix of {rows} x {columns} has no update of rank {rank}")
    # Of the two sides the smaller one is decomposed: E = Q R where E is tall, and U = Q times R's.
    basis, inner = (None, error) if rows <= columns else torch.linalg.qr(error)
    lacking = inner @ _damped(moment, error, damping) @ inner.T
    left = _largest(lacking, rank)
    left = left if basis is None else basis @ left
    return _balanced(left.T @ error, left)


def update_of(
    error: torch.Tensor, lacking: torch.Tensor, rank: int, energy: float = 0.0, damping: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `best_update`, of a wide E: from what the outputs lack, where S itself was never summed up.

    Args:
        error: W_dense - W, [out, in], out <= in.
        lacking: E S E', [out, out]: the second moment of X E'.
        rank: at most out.
        energy: the trace of S.
        damping: as there.
    """
    error = error.double()
    if not energy > 0:
        return best_update(error, None, rank)
    left = _largest(lacking.double() + damping * energy / error.shape[1] * (error @ error.T), rank)
    return _balanced(left.T @ error, left)


def scaled(a: torch.Tensor, b: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The same update for layers that multiply it by `scale`: both factors divided by the root of it."""
    return a / scale**0.5, b / scale**0.5


def _damped(moment: torch.Tensor | None, error: torch.Tensor, damping: float) -> torch.Tensor:
    import torch

    unit = torch.eye(error.shape[1], dtype=error.dtype, device=error.device)
    if moment is None or not bool(moment.any()):
        return unit
    moment = moment.to(error)
    return moment + damping * moment.diagonal().mean() * unit


def _largest(symmetric: torch.Tensor, count: int) -> torch.Tensor:
    """The eigenvectors of the `count` largest eigenvalues, [n, count], the largest first.

    On the CPU only these are computed, in less than half of the time that all of them take.
    """
    import torch

    symmetric = (symmetric + symmetric.T) / 2
    if symmetric.device.type != "cpu":
        return torch.linalg.eigh(symmetric).eigenvectors[:, -count:].flip(-1)
    from scipy.linalg import eigh

    size = len(symmetric)
    _, vectors = eigh(symmetric.numpy(), subset_by_index=[size - count, size - 1], check_finite=False)
    return torch.from_numpy(vectors[:, ::-1].copy())


def _balanced(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same product, each row of A as long as the column of B beside it; B's are of length 1."""
    import torch

    root = a.norm(dim=1, keepdim=True).sqrt()
    return a / torch.where(root > 0, root, 1.0), b * root.T
