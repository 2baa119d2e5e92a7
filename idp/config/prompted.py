"""What every recovery may say that puts a prompt before the input: its BOS, its states and its sink."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from idp.beginning import BEFORE, WITHIN, Beginning, sink_of
from idp.config.options import DENSE
from idp.config.recovery import Recovery, bos_option

OWN_STATES, DENSE_STATES = STATES = ("own", "dense")
NO_SINK, KEEP = SINKS = ("none", "keep")


def _later(help: str, choices: tuple[str, ...]) -> Any:
    """A field that came later: where it has the first of its values, keys and records are as they were before it."""
    metadata = {"help": help, "choices": choices, "minimum": None, "maximum": None, "unsaid": True}
    return field(default=choices[0], kw_only=True, metadata=metadata)


def states_option() -> Any:
    """The field `states` of a recovery whose keys and values a model computes once."""
    return _later(
        "what computes the prompt's keys and values: the compressed model itself (own) or, once and for all, the dense"
        " one (dense; IntactKV): then they are what is stored",
        STATES,
    )


@dataclass
class Prompted(Recovery):
    """A recovery that puts prompts before the input, and says who computes their keys and values."""

    bos: str = bos_option()
    states: str = states_option()
    sink: str = _later(
        "keep: the prompt's first position is the model's BOS, or what stands in for it, and is not trained"
        " (Cartridges); none: no such position",
        SINKS,
    )

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | (frozenset({DENSE}) if self.states == DENSE_STATES else frozenset())

    @property
    def plain(self) -> bool:
        """Whether the prompt is all its own, and the compressed model computes its keys and values."""
        return self.states == OWN_STATES and self.sink == NO_SINK

    def beginning(self, bos: tuple[int, ...]) -> Beginning:
        """A BOS before a prompt that is not `plain` is part of it: stored with it, and computed by the same model."""
        return Beginning(bos, WITHIN if bos and self.bos == BEFORE and not self.plain else self.bos)

    def held(self, loaded: Any) -> list[int]:
        """The tokens that stand first in each prompt and stay what they are, of an `idp.models.LoadedModel`."""
        if self.beginning(loaded.bos).place == WITHIN:
            return list(loaded.bos)
        sink = sink_of(loaded.bos, loaded.tokenizer) if self.sink == KEEP else None
        return [] if sink is None else [sink]

    def count_held(self, loaded: Any) -> int:
        """How many those are; at most, of a model without a tokenizer."""
        return self.most_held if loaded.tokenizer is None else len(self.held(loaded))

    @property
    def most_held(self) -> int:
        """How many those are at most, the BOS that `beginning` counts left out."""
        return int(self.sink == KEEP)
