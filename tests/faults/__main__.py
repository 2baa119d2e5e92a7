"""`python -m tests.faults`: inflicts faults on runs of the tiny model and prints the figures of docs/reliability.md."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a forked process must find no threads
for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.setdefault(name, "1")


def main(words: list[str] | None = None) -> int:
    """Every part that is asked for; the exit status is 1 where a promise was not kept."""
    parser = argparse.ArgumentParser("python -m tests.faults", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all of them unless given")
    parser.add_argument(
        "--count", type=int, help="kills, configs, damages, full disks, cases; unless given 50, 200, all, all, all"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws moments, mutations, bits")
    parser.add_argument("--verbose", action="store_true", help="say what became of each mutated config")
    parser.add_argument("--folder", type=Path, help="where runs are made; unless given a temporary one")
    options = parser.parse_args(words)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]}: {', '.join(PARTS)}")

    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
    from tests.faults.runs import Fault, import_all

    failed = 0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        import_all()
        for part in options.parts or PARTS:
            started = time.monotonic()
            try:
                PARTS[part](Path(folder) / part, options.count, options.seed)
            except Fault as fault:
                failed = 1
                print(f"{part}: {fault}", file=sys.stderr, flush=True)
            print(f"{part}: {time.monotonic() - started:.0f} s\n", file=sys.stderr, flush=True)
    return failed


def _kill(folder: Path, count: int | None, seed: int) -> None:
    from tests.faults import kill
    from tests.faults.runs import Bench

    figures = kill.check(Bench(folder), 50 if count is None else count, seed)
    _print("killed in stage", ["kills", "with a product half made", "with work to go on from"], figures.rows())
    print(
        f"{figures.runs} of {figures.runs} runs ended with the undisturbed record; 0 finished products made again;"
        f" {figures.products} of {figures.products} products equal byte by byte\n"
    )


def _configs(folder: Path, count: int | None, seed: int) -> None:
    from tests.faults import configs

    figures = configs.check(folder, 200 if count is None else count, seed)
    _print("mutation", ["refused in one line", "ran to its record", "still running at its limit"], figures.rows())


def _store(folder: Path, count: int | None, seed: int) -> None:
    from tests.faults import store
    from tests.faults.runs import Bench

    figures = store.check(Bench(folder), count, seed)
    _print("stage", ["files", "damages", "set aside and made anew"], figures.rows())
    print("every run afterwards ended with the undisturbed record, products equal byte by byte\n")


def _disk(folder: Path, count: int | None, seed: int) -> None:
    from tests.faults import disk

    try:
        figures = disk.check(folder, count, seed)
    except disk.Unavailable as why:
        print(f"disk: skipped: {why}\n")
        return
    _print("disk full at a file of", ["times", "clear error", "ended all the same"], figures.rows())
    print("every rerun with space ended with the undisturbed record, products equal byte by byte\n")


def _people(folder: Path, count: int | None, seed: int) -> None:
    from tests.faults import people

    figures = people.check(folder, count, seed)
    _print("what people do", ["cases, each with its right outcome"], figures.rows())
    for name, why in figures.skipped.items():
        print(f"people: not tried: {name}: {why}")


def _print(first: str, columns: list[str], rows: list[list[object]]) -> None:
    from tabulate import tabulate

    print(tabulate(rows, headers=[first, *columns], tablefmt="github", disable_numparse=True), end="\n\n", flush=True)


PARTS: dict[str, Callable[[Path, int | None, int], None]] = {
    "kill": _kill,
    "configs": _configs,
    "store": _store,
    "disk": _disk,
    "people": _people,
}

if __name__ == "__main__":
    sys.exit(main())
