"""Progress with a rate and an ETA: a bar on a terminal, a line now and then where output goes to a file."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

EVERY_SECONDS = 30.0


class _Lines:
    """tqdm's `update` and `set_postfix` for output that is not a terminal: one whole line at intervals."""

    def __init__(self, total: int, label: str, unit: str):
        self.total, self.label, self.unit = total, label, unit
        self.n, self.note = 0, ""
        self.started = self.printed_at = time.monotonic()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        if self.printed_at > self.started:  # something was said before, so say the end as well
            self._say()

    def update(self, count: int = 1) -> None:
        self.n += count
        if time.monotonic() - self.printed_at >= EVERY_SECONDS:
            self._say()

    def set_postfix(self, **values: Any) -> None:
        self.note = " ".join(f"{name}={value}" for name, value in values.items())

    def _say(self) -> None:
        self.printed_at = time.monotonic()
        rate = self.n / (self.printed_at - self.started)
        left = (self.total - self.n) / rate if rate else float("inf")
        line = f"{self.label}: {self.n}/{self.total} {self.unit}, {rate:.3g}/s, {left:.0f} s left {self.note}"
        print(line.rstrip(), file=sys.stderr, flush=True)


def progress(total: int, label: str, unit: str = "it", disable: bool = False) -> Any:
    """A progress bar to be used in a `with` block, with `update(n)` and `set_postfix(name=value)`."""
    if disable or not sys.stderr.isatty():
        return tqdm(total=total, disable=True) if disable else _Lines(total, label, unit)
    return tqdm(total=total, desc=label, unit=f" {unit}", leave=False, dynamic_ncols=True, smoothing=0.1)


@contextlib.contextmanager
def no_stray_bars() -> Iterator[None]:
    """Keeps transformers' bars out of files: where they are not drawn over on a terminal, each step is a line more."""
    from transformers.utils import logging

    if sys.stderr.isatty() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
