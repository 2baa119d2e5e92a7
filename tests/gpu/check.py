"""Runs the steps one after the other, each in a process of its own, within a time that is given.

A process of its own, since a fault on a card takes the process with it. It starts while the step before still works:
imports, which take as long as many a step, then cost no time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from idp.store import write_json
from tests.gpu.bench import Bench
from tests.gpu.lines import FAILED, SKIPPED, Line
from tests.gpu.steps import Step
from tests.gpu.work import work
from tests.gpu.worker import Worker


class Check:
    """What was found so far; `found` is also on disk after every line, so that a cut leaves what was measured.

    Args:
        bench: where.
        seconds: for all steps together.
        output: the JSON.
        tell: is given each line.
    """

    def __init__(self, bench: Bench, seconds: float, output: Path, tell: Callable[[dict[str, Any]], None]):
        self.bench, self.output, self.tell = bench, output, tell
        self.started = time.monotonic()
        self.end = self.started + seconds
        self.found: dict[str, Any] = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": None,
            "device": bench.device,
            "shape": bench.shape,
            "limit_seconds": seconds,
            "seconds": 0.0,
            "finished": False,
            "lines": [],
        }

    def run(self, steps: Sequence[Step], apart: bool) -> None:
        """All steps; `apart`: each in a process of its own, which is ended when its time is over."""
        worker = None
        for number, step in enumerate(steps):
            later = steps[number + 1 :]
            deadline = self.end - sum(each.seconds for each in later)
            if not apart:
                work(step, step.parts(self.bench), self.bench, self._heard)
                continue
            current = worker or Worker(step, self.bench)
            worker = Worker(later[0], self.bench) if later else None
            try:
                self._apart(step, current, deadline)
                if self._no_card(step):
                    if worker is not None:
                        worker.kill()
                    for each in later:
                        self._line(each, Line("all of it", verdict=SKIPPED, reason="there is no card to look at"))
                    break
            except BaseException:
                for each in filter(None, (current, worker)):
                    each.kill()
                raise
        self.found["finished"] = True
        self._write()

    @property
    def failed(self) -> bool:
        return any(line["verdict"] == FAILED for line in self.found["lines"])

    def _apart(self, step: Step, worker: Worker, deadline: float) -> None:
        """A step in `worker`, and, where that ends early, what is left of it in others."""
        parts = step.parts(self.bench)
        while parts and time.monotonic() < deadline:
            parts = self._ask(step, worker or Worker(step, self.bench), parts, deadline)
            worker = None
        for part in parts:
            self._line(step, Line(part, verdict=SKIPPED, reason="no time was left"))
        if worker is not None:
            worker.kill()

    def _ask(self, step: Step, worker: Worker, parts: list[str], deadline: float) -> list[str]:
        """What is left of the parts once a process has ended: after all of them, in one of them, or after its time."""
        left, ready, within = list(parts), False, False
        started = time.monotonic()
        try:
            worker.ask(parts)
            for heard in worker.answers(deadline):
                self._heard(heard)
                if "begin" in heard:
                    within, started = True, time.monotonic()
                elif "end" in heard:
                    within = False
                    left.remove(heard["end"])
                ready = ready or "ready" in heard
            reason = worker.last_words()
        except TimeoutError:
            reason = f"no end after {time.monotonic() - started:.0f} s"
        finally:
            worker.kill()
        taken = time.monotonic() - started
        if not ready:
            self._line(step, Line("its start", verdict=FAILED, reason=reason), taken)
            return []
        if within:
            self._line(step, Line(left.pop(0), verdict=FAILED, reason=reason), taken)
        return left

    def _no_card(self, step: Step) -> bool:
        """Whether this step has just found that the device is not there at all."""
        lines = [line for line in self.found["lines"] if line["step"] == step.name]
        return any(line["name"] == "card" and line["verdict"] == FAILED for line in lines)

    def _heard(self, what: dict[str, Any]) -> None:
        if "line" in what:
            line = what["line"]
            self.found["lines"].append(line)
            self.found["machine"] = self.found["machine"] or line["values"].get("card")
            self._write()
            self.tell(line)

    def _line(self, step: Step, line: Line, seconds: float = 0.0) -> None:
        self._heard({"line": {"step": step.name, **line.as_json(), "seconds": round(seconds, 2)}})

    def _write(self) -> None:
        self.found["seconds"] = round(time.monotonic() - self.started, 1)
        write_json(self.output, self.found)
