"""How long making a product takes: over all attempts at it, and without the other products that its maker asks for.

What those took is known by name beside it, so that a repair that is made upon another costs the same whether that one
was in the store already or not, and so that a sum counts nothing twice.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger("idp.store")

STOPWATCH = ".stopwatch.json"  # in the folder of a product that is being made
_running: contextvars.ContextVar[Stopwatch | None] = contextvars.ContextVar("running", default=None)


class Stopwatch:
    """The time of one product's maker; of an attempt that was killed, what counts is until its last checkpoint.

    Args:
        folder: where the product is made.
        checkpoint: the folder within which what a killed attempt had done survives.
    """

    def __init__(self, folder: Path, checkpoint: Path):
        self.file = folder / STOPWATCH
        self.prerequisites: dict[str, float] = {}
        self._before = _spent(self.file, checkpoint)
        self._elsewhere = 0.0
        self._started = time.perf_counter()
        self.file.touch()
        self._since = self.file.stat().st_mtime  # by the clock of the disk that also dates the checkpoints
        self._write()

    @property
    def seconds(self) -> float:
        """Wall time of the maker alone."""
        return self._before + time.perf_counter() - self._started - self._elsewhere

    def needs(self, taken: dict[str, float]) -> None:
        """Counts products, their seconds by `<stage>/<key>`, among those that had to be made before this one."""
        self.prerequisites |= taken

    @contextlib.contextmanager
    def running(self) -> Iterator[Stopwatch]:
        """While the maker works: what is obtained meanwhile is told to this one."""
        token = _running.set(self)
        try:
            yield self
        finally:
            _running.reset(token)

    def _stopped(self, seconds: float) -> None:
        self._elsewhere += seconds
        self._write()

    def _write(self) -> None:
        values = {"before": self._before, "elsewhere": self._elsewhere, "since": self._since}
        with contextlib.suppress(OSError):  # the folder of a maker that stood still is another's by now
            self.file.write_text(json.dumps(values), encoding="utf-8")


@contextlib.contextmanager
def obtaining() -> Iterator[dict[str, float]]:
    """While a product is obtained, whose seconds are not its asker's: what is put in the dict are its prerequisites.

    Those that asked for the asker's own product are not concerned: to them it is all within what they obtain.
    """
    asking, found = _running.get(), dict[str, float]()
    token, started = _running.set(None), time.perf_counter()
    try:
        yield found
    finally:
        _running.reset(token)
        if asking is not None:
            asking._stopped(time.perf_counter() - started)
            asking.needs(found)


def _spent(file: Path, checkpoint: Path) -> float:
    """Seconds of the work of earlier attempts that is not done over again."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        last = max(path.stat().st_mtime for path in checkpoint.rglob("*"))
        return values["before"] + max(0.0, last - values["since"] - values["elsewhere"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.debug("%s: no earlier attempt is counted (%s)", file, error)
        return 0.0
