"""Runs killed with SIGKILL at random moments and started again: the same record, and no finished stage repeated."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.faults.runs import STAGES, Bench, Fault, Process, same, track, wait_until

LONG = ("recover", "measure")  # stages that are hit twice as often
MOST_KILLS = 3  # of one run


@dataclass
class Figures:
    """Where kills landed, by the stage that the status showed."""

    runs: int = 0
    killed: Counter = field(default_factory=Counter)
    half_made: Counter = field(default_factory=Counter)  # a product was being made
    kept: Counter = field(default_factory=Counter)  # of those, with a checkpoint or finished batches to go on from
    products: int = 0

    def rows(self) -> list[list[object]]:
        """For a table."""
        stages = [stage for stage in ("start", *STAGES, "end") if self.killed[stage]]
        rows = [[stage, self.killed[stage], self.half_made[stage], self.kept[stage]] for stage in stages]
        return [*rows, ["**all**", *(sum(counts.values()) for counts in (self.killed, self.half_made, self.kept))]]


def check(bench: Bench, count: int, seed: int) -> Figures:
    """Kills `count` runs, each one to three times, at moments drawn from the seed.

    Raises:
        Fault: a run did not continue, or ended with another result, or a finished product was made again.
    """
    bench.clear()
    spans = _spans(bench)
    undisturbed = bench.result()
    targets = [stage for stage in STAGES for _ in range(1 + (stage in LONG))]
    figures = Figures()
    for trial in track(range(count), "killed runs"):
        draw = random.Random(f"{seed} {trial}")
        bench.clear()
        landed = 0
        while landed == 0:  # a run may end before the moment that was drawn
            bench.clear()
            landed = _disturb(bench, targets[trial % len(targets)], spans, draw, figures)
        made = bench.made()
        ended = bench.run()
        if odd := bench.leftovers():
            raise Fault(f"run {trial}: left {odd}")
        try:
            _not_repeated(bench, made)
            same(undisturbed, bench.result())
        except Fault as fault:
            raise Fault(f"run {trial} of seed {seed}: {fault}\n{ended.errors}") from fault
        figures.runs += 1
        figures.products += len(undisturbed.products)
    return figures


def _disturb(bench: Bench, first: str, spans: dict[str, float], draw: random.Random, figures: Figures) -> int:
    """Kills a run in the stage `first`, and perhaps the one that goes on from there too; how many kills landed."""
    made: dict[str, int] = {}
    kills = draw.randint(1, MOST_KILLS)
    for number in range(kills):
        stage = first if number == 0 else draw.choice(STAGES)
        process = bench.start()
        if not _reaches(bench, process, stage):
            return number
        time.sleep(draw.random() * spans[stage])
        if process.kill().status != -9:
            return number
        _not_repeated(bench, made)
        made = bench.made()
        shown = bench.stage() or "start"
        figures.killed[shown] += 1
        parts = list(bench.store.glob("*/*.part"))
        figures.half_made[shown] += bool(parts)
        figures.kept[shown] += any(any((part / "checkpoint").rglob("*.json*")) for part in parts)
    return kills


def _not_repeated(bench: Bench, made: dict[str, int]) -> None:
    now = bench.made()
    for place, when in made.items():
        if now.get(place) != when:
            raise Fault(f"{place} was finished and was made again")


def _reaches(bench: Bench, process: Process, stage: str) -> bool:
    """Waits until this process, not the one before it, is in a stage or beyond."""

    def there() -> bool:
        for status in bench.output.glob("runs/*/status.json"):
            about = json.loads(status.read_text())
            shown = about["stage"].split(":")[0]
            return about["pid"] == process.pid and shown in STAGES and STAGES.index(shown) >= STAGES.index(stage)
        return False

    return wait_until(there, process)


def _spans(bench: Bench) -> dict[str, float]:
    """How long each stage of an undisturbed run takes, in seconds."""
    process, begun = bench.start(), {}

    def ended() -> bool:
        begun.setdefault(bench.stage(), time.perf_counter())
        return False

    wait_until(ended, process)
    if process.wait().status:
        raise Fault(f"the undisturbed run fails: {process.wait().errors}")
    begun["end"] = time.perf_counter()
    times = [begun.get(stage) for stage in (*STAGES, "end")]
    for number in range(len(times) - 2, -1, -1):  # a stage too short to be seen
        times[number] = times[number] or times[number + 1]
    return {stage: times[number + 1] - times[number] for number, stage in enumerate(STAGES)}
