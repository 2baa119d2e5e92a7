"""How far a model's next-token distributions are from the dense model's, of which the most likely tokens are kept.

Of each position the dense model's `TOP` most likely tokens are kept with their log-probabilities, and the mass of all
others, the tail. By the chain rule KL(dense || other) is that over those tokens and one bin for the tail, plus the
tail's mass times the divergence of the two tails. The first part alone is a lower bound (the data processing
inequality), and not a close one: rounding moves likely and unlikely tokens alike. So `DRAWN` tokens are drawn from the
dense model's tail and kept as well, and the second part is estimated from them without bias. Where the vocabulary has
no more than `TOP` tokens there is no tail, and everything is exact.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from idp.errors import UserError
from idp.evaluate.tails import DRAWN, cut

if TYPE_CHECKING:
    from pathlib import Path

    import torch

TOP = 96


@dataclass(frozen=True)
class Keep:
    """Asks for a row's distributions, cut to some of their tokens; those of the tail are drawn by `seed`."""

    seed: int


@dataclass
class Kept:
    """Distributions cut to some of their tokens; asked of a row, for how far its own are from them.

    Args:
        ids: [positions, top + drawn] int32: the most likely tokens, ascending, then those drawn from the tail.
        logs: [positions, top + drawn] float32, the tokens' log-probabilities in nats.
        rest: [positions] float32, the log of the tail's mass; -inf where there is none.
        best: [positions] int32, the most likely token, the first of several.
        sizes: [2] int32: how many tokens are in the vocabulary, and `top`.
    """

    ids: np.ndarray
    logs: np.ndarray
    rest: np.ndarray
    best: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.best)

    def __getitem__(self, positions: slice) -> Kept:
        return Kept(**{name: getattr(self, name)[positions] for name in _OF_POSITIONS}, sizes=self.sizes)

    @staticmethod
    def joined(parts: Sequence[Kept]) -> Kept:
        """The positions of several, one after another."""
        whole = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _OF_POSITIONS}
        return Kept(**whole, sizes=parts[0].sizes)

    @property
    def vocabulary(self) -> int:
        """Tokens in the vocabulary."""
        return int(self.sizes[0])

    @property
    def top(self) -> int:
        """How many of a position's tokens are its most likely ones."""
        return int(self.sizes[1])

    @property
    def mass(self) -> float:
        """The mean share of the probability that lies on the most likely tokens."""
        return float(1 - np.exp(self.rest.astype(np.float64)).mean())

    def encoded(self) -> dict[str, Any]:
        """As JSON, without loss and without a digit per digit."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: [array.dtype.str, list(array.shape), base64.b64encode(array.tobytes()).decode()]
            for name, array in arrays.items()
        }

    @staticmethod
    def decoded(values: dict[str, Any]) -> Kept:
        """What was encoded."""
        return Kept(
            **{
                name: np.frombuffer(base64.b64decode(text), dtype).reshape(shape)
                for name, (dtype, shape, text) in values.items()
            }
        )

    def save(self, path: Path, **more: np.ndarray) -> None:
        """Writes it as safetensors, with other arrays beside its own."""
        from safetensors.numpy import save_file

        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        save_file({name: np.ascontiguousarray(array) for name, array in (arrays | more).items()}, path)

    @staticmethod
    def load(path: Path) -> tuple[Kept, dict[str, np.ndarray]]:
        """What was saved, and the arrays beside it."""
        from safetensors.numpy import load_file

        arrays = load_file(path)
        return Kept(**{field.name: arrays.pop(field.name) for field in fields(Kept)}), arrays


_OF_POSITIONS = ("ids", "logs", "rest", "best")

Ask = Keep | Kept | None


@dataclass
class Watched:
    """What is asked of the rows of a run, and what was found, as JSON, each in the order of the rows.

    Of a row asked with `Keep` it is a `Kept.encoded()`; with a `Kept` of its positions, its `kl` in nats and whether it
    has the `same` most likely token, both [positions]; None of one that was asked nothing.
    """

    asks: list[Ask]

    def __post_init__(self) -> None:
        self.found: list[Any] = [None] * len(self.asks)


class DivergenceObserver:
    """Answers the asks of one batch as its forward pass yields logits; every watched row is of one request.

    Args:
        asks: of each row; all that ask, ask for the same.
        sizes: of each row, its positions.

    Raises:
        ValueError: a row has other positions than it is held against.
    """

    def __init__(self, asks: Sequence[Ask], sizes: Sequence[int]):
        import torch

        self.sizes = [size if ask is not None else None for ask, size in zip(asks, sizes, strict=True)]
        given = [ask for ask in asks if isinstance(ask, Kept)]
        if any(len(ask) != size for ask, size in zip(asks, sizes, strict=True) if isinstance(ask, Kept)):
            raise ValueError("distributions are held against those of other positions")
        self.against = Kept.joined(given) if given else None
        watched = [torch.full((size,), ask is not None) for ask, size in zip(asks, sizes, strict=True)]
        places = torch.cat(watched).nonzero()[:, 0]
        self.slots = torch.full((sum(sizes),), -1)  # of each target of the batch, its place among those watched
        self.slots[places] = torch.arange(len(places))
        self.kl = torch.zeros(len(places), dtype=torch.float64)
        self.same = torch.zeros(len(places), dtype=torch.bool)
        # Where in a row's tail its tokens are drawn, whatever else is in the batch.
        drawn = zip(asks, sizes, strict=True)
        offsets = [np.random.default_rng(ask.seed).random(size) for ask, size in drawn if isinstance(ask, Keep)]
        self.offsets = torch.from_numpy(np.concatenate(offsets)) if offsets else None
        self.kept: Kept | None = None

    def see(self, logs: torch.Tensor, best: torch.Tensor, at: torch.Tensor, mine: torch.Tensor) -> None:
        """Takes what it needs of a few positions.

        Args:
            logs: [positions, vocabulary], log-probabilities, float32; overwritten.
            best: [positions], the most likely token.
            at: [targets], the position of each of the batch's targets that are among these.
            mine: [targets], the targets' numbers in the batch.
        """
        slots = self.slots[mine]
        at, slots = at[(slots >= 0).to(at.device)], slots[slots >= 0]
        if not len(slots):
            return
        if self.against is None:
            self._keep(logs, best, at, slots)
            return
        dense = self.against
        if logs.shape[1] != dense.vocabulary:
            raise UserError(
                f"evaluation.fidelity: the model has a vocabulary of {logs.shape[1]} tokens, the dense one"
                f" {dense.vocabulary}; use evaluation.fidelity=false"
            )
        ids = _tensor(dense.ids, slots).to(at)
        kept_logs = logs[at[:, None], ids].cpu()
        logs[at[:, None], ids[:, : dense.top]] = -math.inf
        rest = logs.logsumexp(dim=1)[at].cpu()
        dense_logs, dense_rest = (_tensor(array, slots) for array in (dense.logs, dense.rest))
        self.kl[slots] = divergence(dense_logs, dense_rest, kept_logs, rest, dense.top)
        self.same[slots] = best[at].cpu() == _tensor(dense.best, slots)

    def results(self) -> list[Any]:
        """Of each row of the batch, what `Watched` says."""
        found: list[dict[str, Any] | None] = []
        start = 0
        for size in self.sizes:
            if size is None:
                found.append(None)
                continue
            part = slice(start, start := start + size)
            found.append(
                {"kl": self.kl[part].tolist(), "same": self.same[part].tolist()}
                if self.kept is None
                else self.kept[part].encoded()
            )
        return found

    def _keep(self, logs: torch.Tensor, best: torch.Tensor, at: torch.Tensor, slots: torch.Tensor) -> None:
        import torch

        offsets = torch.zeros(len(logs), dtype=logs.dtype, device=logs.device)
        if self.offsets is not None:
            offsets[at] = self.offsets[slots].to(offsets)
        vocabulary = logs.shape[1]
        ids, kept_logs, rest = cut(logs, offsets, TOP, DRAWN)
        found = {"ids": ids[at], "logs": kept_logs[at], "rest": rest[at], "best": best[at]}
        if self.kept is None:
            dtypes = {"ids": np.int32, "logs": np.float32, "rest": np.float32, "best": np.int32}
            shapes = {name: (len(self.kl), *values.shape[1:]) for name, values in found.items()}
            empty = {name: np.zeros(shapes[name], dtype) for name, dtype in dtypes.items()}
            self.kept = Kept(**empty, sizes=np.array([vocabulary, min(TOP, vocabulary)], np.int32))
        for name, values in found.items():
            getattr(self.kept, name)[slots.numpy()] = values.cpu().numpy()


def divergence(
    dense: torch.Tensor, dense_rest: torch.Tensor, other: torch.Tensor, other_rest: torch.Tensor, top: int
) -> torch.Tensor:
    """KL(dense || other) in nats, [positions] float64, from some tokens of each position; see the module's text.

    Rounding leaves log-probabilities a little off a sum of one, which would show where both models are near each other:
    they are normalised in float64.

    Of the tails, with r the ratio of a drawn token's probability in the other model's tail to that in the dense one's,
    the mean of r - 1 - log r is an unbiased estimate of their divergence that is never negative, and 0 where they are
    equal (Schulman, "Approximating KL Divergence", 2020, his k3).

    Args:
        dense: [positions, top + drawn], log-probabilities.
        dense_rest: [positions], the log of the tail's mass; -inf for none.
        other: as `dense`, of the other model; `other_rest` likewise.
        other_rest: see `other`.
        top: how many of the tokens are the dense model's most likely ones; the others are drawn from its tail.
    """
    import torch

    both = ((dense, dense_rest), (other, other_rest))
    p, q = (
        torch.cat([logs[:, :top].double(), rest.double()[:, None]], dim=1).log_softmax(dim=1) for logs, rest in both
    )
    found = torch.where(p.isneginf(), 0.0, p.exp() * (p - q)).sum(dim=1)
    if dense.shape[1] == top:
        return found
    before, after = (logs[:, top:].double() - rest.double()[:, None] for logs, rest in both)
    ratio = after - before
    return found + torch.where(dense_rest.isneginf(), 0.0, p[:, -1].exp() * (ratio.expm1() - ratio).mean(dim=1))


def figures(kl: np.ndarray, same: np.ndarray, counts: Sequence[int]) -> dict[str, float | int | None]:
    """What is said of divergences.

    Args:
        kl: [positions] nats.
        same: [positions], whether both have the same most likely token.
        counts: of each window or document, how many of the positions are its own, in order.

    Returns:
        `mean_kl`, `median_kl` and `p99_kl` in nats per token, `stderr` of the mean over windows or documents (None of a
        single one), the share `same_top`, and `tokens` counted.
    """
    sums = np.add.reduceat(kl, np.cumsum([0, *counts[:-1]]))
    mean, blocks = float(kl.mean()), len(counts)
    spread = float(((sums - mean * np.asarray(counts)) ** 2).sum())
    return {
        "mean_kl": mean,
        "median_kl": float(np.median(kl)),
        "p99_kl": float(np.percentile(kl, 99)),
        "same_top": float(same.mean()),
        "tokens": len(kl),
        "stderr": math.sqrt(spread * blocks / (blocks - 1)) / len(kl) if blocks > 1 else None,
    }


def _tensor(array: np.ndarray, positions: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.from_numpy(array[positions.numpy()])
