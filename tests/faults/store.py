"""Every file in the store damaged in turn: found out, set aside, made anew, and never a wrong score."""

from __future__ import annotations

import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.runs import Bench, Fault, Result, same, track, wait_until

DAMAGES = ("truncated", "flipped", "deleted")
FLIPS = 8  # of each file that a killed run goes on from: most bits of a number lie in digits that no parser misses


@dataclass
class Figures:
    """Damages by the stage whose file it was, and what became of them."""

    files: dict[str, set[Path]] = field(default_factory=lambda: defaultdict(set))
    damages: Counter = field(default_factory=Counter)
    set_aside: Counter = field(default_factory=Counter)

    def rows(self) -> list[list[object]]:
        """For a table."""
        rows = [[stage, len(self.files[stage]), self.damages[stage], self.set_aside[stage]] for stage in self.files]
        return [*rows, ["**all**", *(sum(row[column] for row in rows) for column in (1, 2, 3))]]


def check(bench: Bench, count: int | None, seed: int) -> Figures:
    """Damages the files of a finished run's store, and those that a killed run would go on from.

    Args:
        bench: where runs are made.
        count: damages to try of the finished store's, drawn from the seed so that each stage has some; None: all.
        seed: draws bits, lengths and files.

    Raises:
        Fault: a damage was not found, or what was made anew is something else.
    """
    bench.clear()
    bench.run()
    figures, whole = Figures(), bench.result()
    cases = [(file, damage) for file in _files(bench.store) for damage in DAMAGES]
    if count is not None:
        cases = list(_some(cases, bench.store, count, seed))
    for file, damage in track(cases, "damages"):
        _damage_finished(bench, whole, file, damage, random.Random(f"{seed} {file.name} {damage}"), figures)
    for stage, pattern in {"recover": "**/step-*.safetensors", "measure": "**/batches-*"}.items():
        _damage_unfinished(bench, whole, stage, pattern, FLIPS if count is None else 2, seed, figures)
    return figures


def _damage_finished(
    bench: Bench, whole: Result, file: Path, damage: str, draw: random.Random, figures: Figures
) -> None:
    """One damage to a finished product: the run again sets it aside, makes it anew and nothing else."""
    stage, product = file.relative_to(bench.store).parts[:2]
    before = bench.made()
    inflict(file, damage, draw)
    ended = bench.run()
    try:
        same(whole, bench.result())
        aside = list(bench.store.glob("*/*.damaged-*"))
        if stage == "locks":
            wanted = []
        else:
            wanted = [bench.store / stage / f"{product}.damaged-0"]
            if "set aside" not in ended.errors:
                raise Fault("nothing was said")
        if aside != wanted:
            raise Fault(f"set aside: {aside}")
        again = {place for place, when in bench.made().items() if before[place] != when}
        if again != {f"{stage}/{product}" for _ in wanted}:
            raise Fault(f"made again: {sorted(again)}")
    except Fault as fault:
        raise Fault(f"{file} {damage}: {fault}\n{ended.errors}") from fault
    for folder in aside:
        shutil.rmtree(folder)
    figures.files[stage].add(file)
    figures.damages[stage] += 1
    figures.set_aside[stage] += len(aside)


def _damage_unfinished(
    bench: Bench, whole: Result, stage: str, pattern: str, flips: int, seed: int, figures: Figures
) -> None:
    """Damages to what a run killed in a stage would go on from: it goes on without, to the same end."""
    kept, label = bench.folder / "kept", f"{stage}, unfinished"
    inside = f"{stage}/*.part/checkpoint"
    left: list[Path] = []
    while not left:  # what is waited for may be gone again before the kill
        bench.clear()
        process = bench.start()
        if not wait_until(
            lambda: any(file.stat().st_size for file in bench.store.glob(f"{inside}/{pattern}")), process
        ):
            raise Fault(f"{stage} left nothing to go on from")
        process.kill()
        left = [path for path in bench.store.glob(f"{inside}/**/*") if path.is_file()]
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(bench.output, kept)
    for file in sorted(kept / path.relative_to(bench.output) for path in left):
        figures.files[label].add(file)
        for number, damage in enumerate(("truncated", "deleted", *["flipped"] * flips)):
            bench.clear()
            shutil.copytree(kept, bench.output)
            inflict(bench.output / file.relative_to(kept), damage, random.Random(f"{seed} {file.name} {number}"))
            ended = bench.run()
            try:
                same(whole, bench.result())
            except Fault as fault:
                raise Fault(f"{file} {damage} ({number}): {fault}\n{ended.errors}") from fault
            figures.damages[label] += 1


def inflict(file: Path, damage: str, draw: random.Random) -> None:
    """Truncates a file somewhere, flips one of its bits, or deletes it; an empty one gets a byte in place of a flip."""
    content = file.read_bytes()
    if damage == "deleted":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(content[: draw.randrange(len(content))] if content else b"")
    elif not content:
        file.write_bytes(b"?")
    else:
        place = draw.randrange(len(content))
        flipped = content[place] ^ 1 << draw.randrange(8)
        file.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])


def _files(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file())


def _some(cases: list, store: Path, count: int, seed: int) -> Iterator[tuple[Path, str]]:
    """Cases in random order, the stages taking turns."""
    draw = random.Random(seed)
    by_stage: dict[str, list] = {}
    for case in draw.sample(cases, len(cases)):
        by_stage.setdefault(case[0].relative_to(store).parts[0], []).append(case)
    for number in range(count):
        stages = [stage for stage in by_stage if by_stage[stage]]
        if stages:
            yield by_stage[stages[number % len(stages)]].pop()
