"""What the check says: lines with a figure and a verdict, as they come, as a table, and as JSON."""

from __future__ import annotations

import dataclasses
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OK, SLOW, FAILED, SKIPPED = "ok", "slow", "FAILED", "skipped"


@dataclass
class Line:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        figure: what was measured, with its unit.
        verdict: ok; slow: right, and slower or larger than it should be; FAILED; skipped: not looked at.
        reason: why the verdict is not `ok`.
        values: the figures as numbers, in bytes and seconds, under names that say so.
    """

    name: str
    figure: str = ""
    verdict: str = OK
    reason: str = ""
    values: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def failure(name: str, error: BaseException) -> Line:
    """A line for what ended in an error: its last words, and the place in this project or in a library."""
    at = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in at if f"{Path('idp')}/" in frame.filename or "tests/gpu" in frame.filename]
    frame = (ours or at or [None])[-1]
    where = f" ({Path(frame.filename).parent.name}/{Path(frame.filename).name}:{frame.lineno})" if frame else ""
    said = " ".join(str(error).split())[:300]
    return Line(name, verdict=FAILED, reason=f"{type(error).__name__}: {said}{where}")


def said(step: str, line: dict[str, Any]) -> str:
    """A line as it is printed when it comes."""
    parts = [f"{line['verdict']:<7} {step}: {line['name']}", line["figure"], line["reason"]]
    return " - ".join(filter(None, parts))


def table(found: dict[str, Any]) -> str:
    """All lines, under the card's name."""
    from tabulate import tabulate

    rows = []
    for line in found["lines"]:
        verdict = f"{line['verdict']}: {line['reason']}" if line["reason"] else line["verdict"]
        rows.append([line["step"], line["name"], line["figure"], verdict])
    head = f"{found['machine'] or 'unknown machine'}, shape {found['shape']}, {found['seconds']:.0f} s"
    drawn = tabulate(rows, ["step", "what", "figure", "verdict"], tablefmt="github", disable_numparse=True)
    return f"{head}\n\n{drawn}"


def gib(size: float) -> str:
    """Bytes as GiB, or as MiB where they are few."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
