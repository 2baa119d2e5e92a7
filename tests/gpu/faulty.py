"""A step with all that can befall one, to see that what comes after it still runs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

from tests.gpu.bench import Bench
from tests.gpu.lines import Line
from tests.gpu.steps import Step


def parts(_: Bench) -> list[str]:
    return ["measures", "raises", "dies", "measures again", "hangs", "comes too late"]


def run(part: str, _: Bench) -> Iterator[Line]:
    if part == "raises":
        raise ValueError("a wrong shape")
    yield Line(part, f"{os.getpid()}")
    if part == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if part == "hangs":
        time.sleep(600)


STEP = Step(__name__, 0, parts, run, ("json",))
