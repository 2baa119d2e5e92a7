"""How an option is declared, and options as plain values: for records, keys and messages."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

# Bounds beyond which a value is a slip of the hand: found before it costs the memory of a machine or a year of it.
SEEDS, MANY, WIDE = 2**32 - 1, 10**7, 2**16


def conf_dir() -> Path:
    """The folder of YAML files: inside the package when installed, beside it in a checkout."""
    inside = Path(__file__).parent.parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent.parent / "conf"


def option(
    help: str,
    *,
    choices: tuple | Callable[[], tuple] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    default: Any = MISSING,
    unsaid: bool = False,
    decides: bool = True,
    keyword: bool = False,
) -> Any:
    """A config field with its help and the values that it takes.

    Args:
        help: in a line.
        choices: the values; a function where they are known only once kinds are found.
        minimum, maximum: of a number.
        default: for an option that came later: a YAML of the user's own that does not know it means that.
        unsaid: whether records and hashes are silent about it while it has its default, as they were before it came.
        decides: whether what is made depends on it; else it is no part of a key (`decisive`).
        keyword: whether it is given by its name alone, so that those of subclasses may come before it.
    """
    metadata = {"help": help, "choices": choices, "minimum": minimum, "maximum": maximum}
    metadata |= {"unsaid": unsaid, "decides": decides}
    if isinstance(default, (dict, list)):  # of each its own; {} rather than null, which words can be merged into
        return field(default_factory=lambda: type(default)(default), metadata=metadata, kw_only=keyword)
    return field(default=default, metadata=metadata, kw_only=keyword)


def part(node: type, *, keyword: bool = False) -> Any:
    """A config field that is a choice of its own, made once the rest exists: no part of what that is known by."""
    return field(default_factory=node, kw_only=keyword, metadata={"decides": False})


def decisive(node: Any) -> dict[str, Any]:
    """The options of a dataclass that what is made by it depends on, those of its parts likewise, as plain values.

    Left out are fields that do not decide (`option(..., decides=False)`), those that are `unsaid`, and those that a
    node's property `unused` names: options that decide nothing as the others are set. So the same work has one key.
    """
    found = {}
    for item in dataclasses.fields(node):
        value = getattr(node, item.name)
        unsaid = item.metadata.get("unsaid") and value == _default(item)
        if item.metadata.get("decides", True) and not unsaid and item.name not in getattr(node, "unused", ()):
            options = getattr(value, "options", None)  # a recovery within a recovery says itself what decides
            found[item.name] = (
                options() if callable(options) else decisive(value) if dataclasses.is_dataclass(value) else value
            )
    return copy.deepcopy(found)


def choices_of(item: dataclasses.Field) -> tuple:
    """The values that a field takes; empty where they are not named."""
    choices = item.metadata.get("choices", ())
    return choices() if callable(choices) else choices


def values_of(node: Any) -> dict[str, Any]:
    """Options as a record holds them and a run is known by: `asdict`, without what is `unsaid`."""
    values = dataclasses.asdict(node)

    def strip(node: Any, values: dict[str, Any]) -> None:
        for item in dataclasses.fields(node):
            value = getattr(node, item.name)
            if dataclasses.is_dataclass(value):
                strip(value, values[item.name])
            elif item.metadata.get("unsaid") and value == _default(item):
                del values[item.name]

    strip(node, values)
    return values


def _default(item: dataclasses.Field) -> Any:
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


def keyword_option(name: str, kind: str, help: str) -> Any:
    """Adds a config field whose name Python keeps for itself, such as `from`; read it with `getattr`."""
    metadata = {"help": help, "choices": (), "minimum": None, "maximum": None}

    def added(node: type) -> type:
        node.__annotations__ = {**inspect.get_annotations(node), name: kind}
        # Not part of __init__ and __repr__, which would spell it; OmegaConf then sets it as an attribute.
        setattr(node, name, field(default=MISSING, init=False, repr=False, compare=False, metadata=metadata))
        return node

    return added


# What a kind may need beside its options: the run's training text, calibration text as the inputs of layers, the dense
# model, and weights: of a compressor those that others made, of a recovery the compressed model's; and the grid that a
# compressor has put those on. Of a selector, also each prompt's outcomes on documents of tasks with their answers.
TEXT, CALIBRATION, DENSE, WEIGHTS, GRID = "text", "calibration", "dense", "weights", "grid"
OUTCOMES = "outcomes"


def one_line(error: Exception) -> str:
    """An OmegaConf or Hydra error as one line that names the key."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    lines = [line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type="))]
    text = " ".join(lines) or type(error).__name__
    return f"{key}: {text}" if key and key not in text else text
