"""How a layer weighs the keys that a query may see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Weighing:
    """How a layer weighs the keys that a query may see.

    Args:
        scaling: of the products of queries and keys.
        window: tokens of its sliding window, the query's own counted; None: all that came before.
        chunk: tokens of the chunks that its attention does not cross; None: there are none.
        cap: bounds the scaled products s to cap * tanh(s / cap); None: not at all.
        sinks: [heads], the score of a key that is not there and only takes weight away; None: there is none.
    """

    scaling: float
    window: int | None = None
    chunk: int | None = None
    cap: float | None = None
    sinks: torch.Tensor | None = None
