"""Following a run from outside: what a tracker is given, and that none of its troubles ever costs the run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from idp import config
from idp.records.schema import Record

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Followed:
    """The run that a tracker follows.

    Args:
        name: the run's, as its folder is called.
        run_id: 12 hex digits, the hash of all that decides its result: a continued run has the same.
        folder: the run's, below which a tracker may keep files of its own.
        config: the resolved config.
        labels: what runs are told apart by, in a word each: model, compressor, recovery, budget, and study if any.
    """

    name: str
    run_id: str
    folder: Path
    config: Mapping[str, Any]
    labels: Mapping[str, str]


class Tracker(Protocol):
    """What `config.Tracker.start` gives. One of the last three methods is called at the end, and nothing after it."""

    def log(self, row: dict[str, float]) -> None:
        """One training step or held-out evaluation: `step`, and figures such as `prompt_0/loss` or `lora/heldout_loss`.

        A run whose repair was made before gives its whole curve again.
        """

    def summary(self, record: Record, place: Path, repair: Path | None) -> None:
        """The record, its file, and the repair's folder, if the model was repaired."""

    def finish(self) -> None:
        """The run is done, and its record is written."""

    def fail(self) -> None:
        """The run has failed."""

    def stop(self) -> None:
        """This process stops, and another is to continue the run. Called while an exception unwinds, in no handler."""


class Tracking:
    """A tracker that never costs a run: its first error is one warning, and the run goes on without it.

    Args:
        options: the tracker's, which start it.
        run: what it follows.
    """

    def __init__(self, options: config.Tracker, run: Followed):
        self.title = options.title or f"tracker {options.kind}"
        self.tracker: Tracker | None = None
        self.tracker = self._guarded(lambda: options.start(run))

    @contextlib.contextmanager
    def following(self) -> Iterator[Tracking]:
        """Tells the tracker of whatever ends what is inside before it has finished."""
        try:
            yield self
        except Exception:
            self.fail()
            raise
        except BaseException:  # stopped from outside: the same command continues it
            self.stop()
            raise

    def log(self, row: dict[str, float]) -> None:
        """See `Tracker.log`."""
        self._call(lambda tracker: tracker.log(row))

    def finish(self, record: Record, place: Path, repair: Path | None) -> None:
        """Summary and end."""
        self._call(lambda tracker: tracker.summary(record, place, repair))
        self._end(lambda tracker: tracker.finish())

    def fail(self) -> None:
        """See `Tracker.fail`."""
        self._end(lambda tracker: tracker.fail())

    def stop(self) -> None:
        """See `Tracker.stop`."""
        self._end(lambda tracker: tracker.stop())

    def _call(self, method: Callable[[Tracker], None]) -> None:
        if (tracker := self.tracker) is not None:
            self._guarded(lambda: method(tracker))

    def _end(self, method: Callable[[Tracker], None]) -> None:
        self._call(method)
        self.tracker = None

    def _guarded(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as error:
            self.tracker = None
            message = " ".join(str(error).split()) or type(error).__name__
            log.warning(
                "%s: %s; the run goes on without it, and its record is written all the same", self.title, message
            )
            return None
