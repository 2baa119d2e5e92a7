"""Which token comes next in generation: the likeliest one, or one that is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from idp.config import SEEDS
from idp.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, in the words of transformers' `generate`; by default none is: the likeliest one is taken.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token, whatever the rest says.
        top_k: the likeliest tokens that are drawn from; 0: all.
        top_p: the share of probability, of those, that is drawn from, the likeliest first; 1: all.
        seed: of the draws. Each text has draws of its own, whatever else is in its batch.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def check(self) -> None:
        """Refuses values that mean nothing.

        Raises:
            UserError: says which, and what to give.
        """
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise UserError(f"{name}={value}: use a number")
        if self.temperature < 0:
            raise UserError(f"temperature={self.temperature}: use 0 (the likeliest token) or more, such as 0.7")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: use a share of probability above 0, at most 1")
        for name, least in (("top_k", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= SEEDS:
                raise UserError(f"{name}={value}: use a whole number, {least} or more")
        if self.temperature == 0 and (self.top_k, self.top_p, self.seed) != (0, 1.0, 0):
            raise UserError("top_k, top_p and seed are of drawn tokens: give a temperature as well, such as 0.7")


@dataclass
class Draws:
    """The draws of one batch: of each text its own, by its number among all texts."""

    sampling: Sampling
    numbers: Sequence[int]
    _generators: dict[int, Any] = field(default_factory=dict)

    def __call__(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """The next token of some rows, [rows].

        Args:
            logits: [rows, vocabulary].
            rows: which rows of the batch they are of.
        """
        import torch

        uniform = torch.tensor([self._uniform(row) for row in rows], dtype=torch.float64)
        return drawn(logits, uniform.to(logits.device), self.sampling)

    def _uniform(self, row: int) -> float:
        import torch

        if row not in self._generators:
            # A seed of its own for each text: those next to one another are unlike, as torch's generator mixes them.
            seed = (self.sampling.seed * 1_000_003 + self.numbers[row]) % 2**63
            self._generators[row] = torch.Generator().manual_seed(seed)
        return float(torch.rand((), generator=self._generators[row], dtype=torch.float64))


def likeliest(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """The next token of some rows, [rows], where none is drawn; of equal ones the first."""
    return logits.argmax(dim=-1)


def drawn(logits: torch.Tensor, uniform: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """A token of each row by its uniform draw, [rows]: the one at which the likeliest tokens' sum passes it.

    Args:
        logits: [rows, vocabulary].
        uniform: [rows], from 0 up to, not including, 1.
        sampling: temperature, top_k and top_p, which follow one another in that order, as in transformers.
    """
    scores, order = (logits.double() / sampling.temperature).sort(dim=-1, descending=True, stable=True)
    chances = scores.softmax(dim=-1)
    if sampling.top_k:
        chances[:, sampling.top_k :] = 0
        chances = chances / chances.sum(dim=-1, keepdim=True)
    before = chances.cumsum(dim=-1) - chances
    chances = chances * (before < sampling.top_p)  # the first is always kept: nothing is before it
    reached = chances.cumsum(dim=-1)
    place = (reached <= uniform[:, None] * reached[:, -1:]).sum(dim=-1, keepdim=True)
    last = (chances > 0).sum(dim=-1, keepdim=True) - 1  # rounding may carry a draw past what is left
    return order.gather(-1, place.minimum(last))[:, 0]
