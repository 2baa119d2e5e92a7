"""How alike two models' inner states are on the same tokens: attention rows, and hidden vectors.

The first token of an input is left out everywhere: it sees only itself, and it carries the massive activations and the
attention sink of most models, which would decide every mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CKA_TOKENS, CKA_FEWEST = 256, 8  # tokens of a batch, and of the last one at least


def attention_likeness(dense: torch.Tensor, other: torch.Tensor, beyond: int = 0) -> dict[str, float]:
    """How alike two models attend to the same tokens, as means over heads and queries.

    Each row is a distribution over the input's own tokens: of a model behind a prompt the prompt's columns must have
    been dropped, and what is left is brought to a sum of 1 here.

    Args:
        dense: [heads, queries, keys] of the same input's tokens, which see themselves and what comes before.
        other: the same of the other model.
        beyond: keys at the start that are dropped as well; 1 leaves out the sink on the first token.

    Returns:
        `cosine` of the rows, and their `jensen_shannon` divergence in bits, from 0 (equal) to 1 (no key in common).
    """
    from torch.nn.functional import cosine_similarity

    # Of the first query that is counted there must be two keys to choose between.
    p, q = (rows[:, beyond + 1 :, beyond:].double() for rows in (dense, other))
    sums = p.sum(-1), q.sum(-1)
    known = (sums[0] > 0) & (sums[1] > 0)  # all of a row may be on the prompt, or in what is dropped
    p, q = p[known] / sums[0][known][:, None], q[known] / sums[1][known][:, None]
    middle = (p + q) / 2
    divergence = entropy(middle) - (entropy(p) + entropy(q)) / 2
    return {
        "cosine": float(cosine_similarity(p, q, dim=-1).mean()),
        "jensen_shannon": float(divergence.clamp(min=0).mean()),
    }


def entropy(distributions: torch.Tensor) -> torch.Tensor:
    """Shannon entropy of the last dimension, in bits."""
    import torch

    return -torch.xlogy(distributions, distributions).sum(-1) / torch.log(torch.tensor(2.0, dtype=torch.double))


def hidden_cosine(dense: torch.Tensor, other: torch.Tensor) -> float:
    """Mean cosine of the hidden vectors of each token but the first, [tokens, hidden_size]."""
    from torch.nn.functional import cosine_similarity

    return float(cosine_similarity(dense[1:].double(), other[1:].double(), dim=-1).mean())


class LinearCKA:
    """Linear centred kernel alignment (Kornblith et al., 1905.00414) of one layer of two models, over a stream.

    0 to 1; equal up to rotation and scale is 1. As a mean over batches of tokens of the unbiased estimate of HSIC
    (Nguyen et al., 2010.15327, equation 3), since the whole stream's kernel would not fit in memory.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._sums = [0.0, 0.0, 0.0]

    def add(self, dense: torch.Tensor, other: torch.Tensor) -> None:
        """Takes the hidden vectors of an input's tokens, [tokens, hidden_size]; the first one's are dropped."""
        self._waiting.append((dense[1:], other[1:]))
        if sum(len(pair[0]) for pair in self._waiting) >= CKA_TOKENS:
            self._take()

    def value(self) -> float | None:
        """The alignment of all that was added; None where that is too little, or does not vary."""
        if sum(len(pair[0]) for pair in self._waiting) >= CKA_FEWEST:
            self._take()
        cross, first, second = self._sums
        return min(1.0, cross / (first * second) ** 0.5) if first > 0 and second > 0 else None

    def _take(self) -> None:
        import torch

        kernels = []
        for side in zip(*self._waiting, strict=True):
            vectors = torch.cat(side).double()
            vectors = vectors - vectors.mean(0)  # no change of HSIC, but of what rounding leaves of it
            kernel = vectors @ vectors.T
            kernels.append(kernel.fill_diagonal_(0))
        self._waiting.clear()
        pairs = [(0, 1), (0, 0), (1, 1)]
        self._sums = [
            total + unbiased_hsic(kernels[first], kernels[second])
            for total, (first, second) in zip(self._sums, pairs, strict=True)
        ]


def unbiased_hsic(first: torch.Tensor, second: torch.Tensor) -> float:
    """The unbiased estimate of HSIC (Song et al., 2012) from two kernels [n, n] with zeros on their diagonals."""
    n = len(first)
    trace = (first * second).sum()
    sums = first.sum() * second.sum() / ((n - 1) * (n - 2))
    rows = 2 * (first.sum(0) * second.sum(0)).sum() / (n - 2)
    return float((trace + sums - rows) / (n * (n - 3)))
