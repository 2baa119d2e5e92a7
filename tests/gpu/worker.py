"""A process that will do a step's work: it imports at once, and begins when it is asked."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tests.gpu.bench import Bench
from tests.gpu.packages import ROOT
from tests.gpu.steps import Step


class Worker:
    """`python -m tests.gpu.work` for one step. What libraries print goes to a file in the check's folder."""

    def __init__(self, step: Step, bench: Bench):
        self.log = bench.folder / f"{step.name}.log"
        command = [sys.executable, "-m", "tests.gpu.work", step.name, bench.device, bench.shape, str(bench.folder)]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, start_new_session=True
            )

    def ask(self, parts: Sequence[str]) -> None:
        """Lets it begin with the parts."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died of an import: `answers` ends at once
            self.process.stdin.write(f"{json.dumps(list(parts))}\n".encode())
            self.process.stdin.close()

    def answers(self, deadline: float) -> Iterator[dict[str, Any]]:
        """What it says, as it says it, until it ends.

        Args:
            deadline: on the monotonic clock, in seconds.

        Raises:
            TimeoutError: the deadline has come.
        """
        assert self.process.stdout is not None
        place, rest = self.process.stdout.fileno(), b""
        with selectors.DefaultSelector() as selector:
            selector.register(place, selectors.EVENT_READ)
            while True:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                read = os.read(place, 65536)
                if not read:
                    break
                *lines, rest = (rest + read).split(b"\n")
                yield from map(json.loads, lines)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.1, deadline - time.monotonic()))

    def last_words(self) -> str:
        """How it ended, and the last line of its log."""
        code = self.process.poll()
        how = f"ended with status {code}"
        if code is None:
            how = "said no more"
        elif code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"its process {how}" + (f": {lines[-1].strip()[:300]}" if lines else "")

    def kill(self) -> None:
        """Ends it, with whatever it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
