"""The steps, in the order in which they run: what all others rest on first, what takes longest before what is finer."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.gpu.bench import Bench
from tests.gpu.lines import Line

ORDER = ("versions", "families", "residency", "training", "compress", "scoring", "latency", "determinism")


@dataclass(frozen=True)
class Step:
    """One step: a file of this folder, whose `STEP` it is.

    Args:
        name: the file's.
        seconds: what it may take if all others take all of theirs; what they leave it may take as well.
        parts: what it looks at, one after the other; a part that fails leaves the others alone.
        run: looks at one of them.
        imports: modules that take long; to import one does not touch the device.
    """

    name: str
    seconds: float
    parts: Callable[[Bench], list[str]]
    run: Callable[[str, Bench], Iterable[Line]]
    imports: tuple[str, ...]


def find(name: str) -> Step:
    """The step of a file of this folder, or of a module by its full name."""
    return importlib.import_module(name if "." in name else f"{__name__}.{name}").STEP
