"""How many models are in memory at once; for tests."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from transformers import PreTrainedModel


@dataclass
class Alive:
    """Models that were opened and are not freed; `most` is how many with weights of their own there were at once."""

    models: weakref.WeakSet = field(default_factory=weakref.WeakSet)
    opened: int = 0
    most: int = 0

    def add(self, model: PreTrainedModel) -> None:
        if all(parameter.is_meta for parameter in model.parameters()):
            return
        self.models.add(model)
        self.opened += 1
        storages = {
            id(one): {tensor.data_ptr() for tensor in one.parameters() if not tensor.is_meta} for one in self.models
        }
        self.most = max(self.most, len({frozenset(places) for places in storages.values() if places}))


@contextlib.contextmanager
def counted() -> Iterator[Alive]:
    """Counts models that are opened within the block. What waits for the garbage collector is counted: it is there."""
    alive = Alive()
    original = PreTrainedModel.from_pretrained.__func__

    def from_pretrained(cls, *args, **kwargs):
        made = original(cls, *args, **kwargs)
        alive.add(made[0] if isinstance(made, tuple) else made)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedModel, "from_pretrained", classmethod(from_pretrained))
        yield alive
