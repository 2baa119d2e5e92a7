"""Which low-rank experts the rows of the current forward pass go by. It names no model, and its layers ask for it."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


_mixture: contextvars.ContextVar[torch.Tensor | None] = contextvars.ContextVar("idp_experts", default=None)


@contextlib.contextmanager
def following(mixture: torch.Tensor | None) -> Iterator[None]:
    """Within the block, layers with experts go by `mixture`, [rows, experts]: each row of a batch by its own, or each
    token of a packed sequence. None: by no expert."""
    token = start(mixture)
    try:
        yield
    finally:
        end(token)


def start(mixture: torch.Tensor | None) -> contextvars.Token:
    """Begins what `following` is a block of, for hooks; gives what `end` takes."""
    return _mixture.set(mixture)


def end(token: contextvars.Token) -> None:
    """Goes back to what was followed before."""
    _mixture.reset(token)


def followed() -> torch.Tensor | None:
    """What layers with experts go by now, [rows, experts]; None for no expert."""
    return _mixture.get()
