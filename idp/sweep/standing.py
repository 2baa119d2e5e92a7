"""Where each cell of a sweep stands, from the runs' status files and SLURM's queue."""

from __future__ import annotations

import calendar
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idp.errors import UserError
from idp.records.record import RECORD
from idp.records.sweeps import Submission, Sweep, SweepCell, last_submissions
from idp.status import LOCK, STATUS, TIME
from idp.store.lease import TAKEN_AFTER_SECONDS
from idp.sweep import queue

STATES = ("done", "running", "queued", "failed", "missing")
KILLED, UNBORN = "killed", "ended before the run began"  # what no status file can say


@dataclass(frozen=True)
class Standing:
    """A cell's state, one of `STATES`; its SLURM job; and where it is, or in a line why it waits or failed."""

    cell: SweepCell
    state: str
    job: str | None = None
    remark: str = ""

    @property
    def open(self) -> bool:
        """Whether it needs to be submitted: nobody works on it, and it is not done."""
        return self.state in ("failed", "missing")


def standings(sweep: Sweep) -> list[Standing]:
    """Where every cell stands now. A cell that two lists of overrides lead to is given once.

    Raises:
        UserError: cells were given to SLURM, and squeue does not answer.
    """
    last = last_submissions(sweep.folder.parent)
    submissions = {made.name: made for folder, (made, _) in last.items() if folder in {c.folder for c in sweep.cells}}
    jobs = queue.jobs(submissions.keys()) if submissions else {}
    cells = list({cell.folder or tuple(cell.overrides): cell for cell in sweep.cells}.values())
    found = [_standing(cell, last.get(cell.folder or ""), jobs) for cell in cells]
    lost = [stands.cell.folder for stands in found if stands.remark in (KILLED, UNBORN)]
    asked = [last[folder][0] for folder in lost if folder in last]
    ways = queue.ended({made.name for made in asked}, min(made.time for made in asked)) if asked else {}
    return [_explained(stands, last, ways, sweep) for stands in found]


def _standing(cell: SweepCell, last: tuple[Submission, int] | None, jobs: dict[queue.Place, queue.Job]) -> Standing:
    if cell.folder is None:
        return Standing(cell, "failed", remark=cell.error or "")
    folder = Path(cell.folder)
    status = _status(folder)
    if status.get("state") == "done" and (folder / RECORD).exists():
        return Standing(cell, "done", status.get("job"))
    submission, index = last or (None, 0)
    ours = submission is not None and status.get("submission") == submission.name
    if submission is not None and (job := jobs.get((submission.name, index))):
        if job.running:
            return Standing(cell, "running", job.number, status["stage"] if ours else "starting")
        again = f"goes on at {status['stage']}" if ours else ""
        return Standing(cell, "queued", job.number, ", ".join(filter(None, (job.reason.replace("None", ""), again))))
    if status.get("state") == "running" and not ours and _alive(folder, status):
        return Standing(cell, "running", status["job"], f"{status['stage']} on {status['host']}")
    if submission is not None and not ours and _started(status) < submission.time:
        return Standing(cell, "failed", submission.number(index), UNBORN)
    if not status:
        return Standing(cell, "missing")
    return Standing(cell, "failed", status["job"], status["error"] if status["state"] == "failed" else KILLED)


def _explained(stands: Standing, last: dict, ways: dict[queue.Place, str], sweep: Sweep) -> Standing:
    """Says of a run that could not say it itself how it ended, as far as that is known."""
    if stands.remark not in (KILLED, UNBORN):
        return stands
    submission, index = last.get(stands.cell.folder, (None, 0))
    way = ways.get((submission.name, index)) if submission else None
    remark = stands.remark
    if remark == KILLED and stands.cell.folder is not None:
        remark = f"{remark} at stage {_status(Path(stands.cell.folder)).get('stage')}"
    log = sweep.folder / "jobs" / f"{stands.job}_0_log.err"
    where = f"see {log}" if log.exists() else ""
    return Standing(stands.cell, stands.state, stands.job, "; ".join(filter(None, (remark, way, where))))


def _status(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _started(status: dict[str, Any]) -> float:
    """When a run last started, in whole seconds since 1970, rounded up; 0 where it never did."""
    return calendar.timegm(time.strptime(status["started"], TIME)) + 1 if status else 0


def _alive(folder: Path, status: dict[str, Any]) -> bool:
    """Whether the process that holds a run's folder lives: asked of this machine, or told by how fresh its lock is."""
    try:
        touched = (folder / LOCK).stat().st_mtime
    except OSError:
        return False
    if status["host"] != socket.gethostname():
        return time.time() - touched < 2 * TAKEN_AFTER_SECONDS
    try:
        os.kill(status["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def wait(sweep: Sweep, say: Any = print) -> list[Standing]:
    """Waits until no cell runs or is queued, and says what changes."""
    before: dict[str, str] = {}
    started, troubled = time.monotonic(), False
    while True:
        try:
            found = standings(sweep)
            troubled = False
        except UserError as error:  # the controller is being restarted, perhaps: the jobs go on
            if not troubled:
                say(f"{error}; asking again")
            found, troubled = None, True
        if found is not None:
            for stands in found:
                key = " ".join(stands.cell.overrides)
                if before.get(key) != stands.state:
                    say(f"{stands.state}: {short([stands.cell, *sweep.cells])[0]} {stands.remark}".rstrip())
                    before[key] = stands.state
            if not any(stands.state in ("running", "queued") for stands in found):
                return found
        time.sleep(min(30.0, max(1.0, (time.monotonic() - started) / 20)))


def short(cells: Sequence[SweepCell]) -> list[str]:
    """Each cell by the overrides that not all cells have."""
    counts = Counter(word for cell in cells for word in set(cell.overrides))
    return [" ".join(w for w in cell.overrides if counts[w] < len(cells)) or "the only cell" for cell in cells]


def table(sweep: Sweep, found: Sequence[Standing]) -> str:
    """The listing that `python -m idp.sweep status` prints."""
    from tabulate import tabulate

    counts = Counter(stands.state for stands in found)
    said = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    names = short([stands.cell for stands in found])
    rows = sorted(
        ((stands.state, name, stands.job or "", stands.remark) for name, stands in zip(names, found, strict=True)),
        key=lambda row: STATES.index(row[0]),
    )
    head = f"{sweep.folder}: {len(found)} cells: {said}"
    return f"{head}\n\n{tabulate(rows, ('state', 'cell', 'job', ''), tablefmt='plain')}"
