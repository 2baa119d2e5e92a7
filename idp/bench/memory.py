"""`python -m idp.bench.memory`: a card's memory that a training step takes, for models of 1 to 13 billion weights.

Peaks are those of `idp.plan.peaks`, and not what a card holds beside them (`BESIDE`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from idp.plan.peaks import CHECKPOINTED, PLAIN, RECOVERIES, TrainingStep, peaks
from idp.plan.shapes import SHAPES

GIB = 2**30
CARDS = (24, 48, 80)  # GB as they are sold, which is their memory in GiB or a little less
BESIDE = 1.5  # GiB: the CUDA context, workspaces of kernels, and what the allocator rounds up and cannot reuse


def main() -> None:
    """Prints a table and writes the figures as JSON."""
    options = _arguments()
    from idp.store import write_json

    found = []
    for shape in options.shapes:
        for recovery in RECOVERIES:
            step = TrainingStep(shape, recovery, options.rows, options.tokens, options.length)
            found.append(peaks(step))
            print(f"{shape} {recovery}: done", file=sys.stderr)
    print(table(found))
    print(
        f"\n{options.rows} x {options.tokens} tokens, {options.length} prompt tokens, bfloat16; GiB. A card holds a"
        f" step whose peak and {BESIDE} GiB (CUDA context, workspaces, rounding) are within its memory."
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, {"peaks": found, "options": {**vars(options), "output": str(options.output)}})
    print(f"written: {options.output}", file=sys.stderr)


def table(found: list[dict[str, Any]]) -> str:
    """The peaks in GiB as Markdown, and by what each card holds the step."""
    from tabulate import tabulate

    lines = []
    for row in found:
        numbers = [f"{row[name] / GIB:.1f}" for name in ("weights", PLAIN, CHECKPOINTED)]
        lines.append([row["shape"], row["recovery"], *numbers, *(fits(row, card) for card in CARDS)])
    headers = ["model", "recovery", "weights", PLAIN, CHECKPOINTED, *(f"{card} GB" for card in CARDS)]
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)


def fits(row: dict[str, Any], card: int) -> str:
    """The first of a row's ways that a card of so many GB holds; "no" where it holds none."""
    ways = {"yes": PLAIN, CHECKPOINTED: CHECKPOINTED}
    return next((answer for answer, way in ways.items() if row[way] / GIB + BESIDE <= card), "no")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m idp.bench.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES), help="models")
    parser.add_argument("--rows", type=int, default=2, help="sequences of a batch")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a sequence")
    parser.add_argument("--length", type=int, default=100, help="tokens of the prompt or prefix")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/memory.json"), help="where the figures go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
