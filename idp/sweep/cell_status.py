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
class CellStatus:
    """A cell's state, one of `STATES`; its SLURM job; and where it is, or in a line why it waits or failed."""

    cell: SweepCell
    state: str
    job: str | None = None
    remark: str = ""

    @property
    def open(self) -> bool:
        """Whether it needs to be submitted: nobody works on it, and it is not done."""
        return self.state in ("failed", "missing")


def statuses(sweep: Sweep) -> list[CellStatus]:
    """Where every cell stands now. A cell that two lists of overrides lead to is given once.

    Raises:
        UserError: cells were given to SLURM, and squeue does not answer.
    """
    last = last_submissions(sweep.folder.parent)
    submissions = {made.name: made for folder, (made, _) in last.items() if folder in {c.folder for c in sweep.cells}}
    jobs = queue.jobs(submissions.keys()) if submissions else {}
    cells = list({cell.folder or tuple(cell.overrides): cell for cell in sweep.cells}.values())
    found = [_status(cell, last.get(cell.folder or ""), jobs) for cell in cells]
    lost = [status.cell.folder for status in found if status.remark in (KILLED, UNBORN)]
    asked = [last[folder][0] for folder in lost if folder in last]
    ways = queue.ended({made.name for made in asked}, min(made.time for made in asked)) if asked else {}
    return [_explained(status, last, ways, sweep) for status in found]


def _status(cell: SweepCell, last: tuple[Submission, int] | None, jobs: dict[queue.Place, queue.Job]) -> CellStatus:
    if cell.folder is None:
        return CellStatus(cell, "failed", remark=cell.error or "")
    folder = Path(cell.folder)
    status = _run_status(folder)
    if status.get("state") == "done" and (folder / RECORD).exists():
        return CellStatus(cell, "done", status.get("job"))
    submission, index = last or (None, 0)
    ours = submission is not None and status.get("submission") == submission.name
    if submission is not None and (job := jobs.get((submission.name, index))):
        if job.running:
            return CellStatus(cell, "running", job.number, status["stage"] if ours else "starting")
        again = f"goes on at {status['stage']}" if ours else ""
        return CellStatus(cell, "queued", job.number, ", ".join(filter(None, (job.reason.replace("None", ""), again))))
    if status.get("state") == "running" and not ours and _alive(folder, status):
        return CellStatus(cell, "running", status["job"], f"{status['stage']} on {status['host']}")
    if submission is not None and not ours and _started(status) < submission.time:
        return CellStatus(cell, "failed", submission.number(index), UNBORN)
    if not status:
        return CellStatus(cell, "missing")
    return CellStatus(cell, "failed", status["job"], status["error"] if status["state"] == "failed" else KILLED)


def _explained(status: CellStatus, last: dict, ways: dict[queue.Place, str], sweep: Sweep) -> CellStatus:
    """Says of a run that could not say it itself how it ended, as far as that is known."""
    if status.remark not in (KILLED, UNBORN):
        return status
    submission, index = last.get(status.cell.folder, (None, 0))
    way = ways.get((submission.name, index)) if submission else None
    remark = status.remark
    if remark == KILLED and status.cell.folder is not None:
        remark = f"{remark} at stage {_run_status(Path(status.cell.folder)).get('stage')}"
    log = sweep.folder / "jobs" / f"{status.job}_0_log.err"
    where = f"see {log}" if log.exists() else ""
    return CellStatus(status.cell, status.state, status.job, "; ".join(filter(None, (remark, way, where))))


def _run_status(folder: Path) -> dict[str, Any]:
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


def wait(sweep: Sweep, say: Any = print) -> list[CellStatus]:
    """Waits until no cell runs or is queued, and says what changes."""
    before: dict[str, str] = {}
    started, troubled = time.monotonic(), False
    while True:
        try:
            found = statuses(sweep)
            troubled = False
        except UserError as error:  # the controller is being restarted, perhaps: the jobs go on
            if not troubled:
                say(f"{error}; asking again")
            found, troubled = None, True
        if found is not None:
            for status in found:
                key = " ".join(status.cell.overrides)
                if before.get(key) != status.state:
                    say(f"{status.state}: {short([status.cell, *sweep.cells])[0]} {status.remark}".rstrip())
                    before[key] = status.state
            if not any(status.state in ("running", "queued") for status in found):
                return found
        time.sleep(min(30.0, max(1.0, (time.monotonic() - started) / 20)))


def short(cells: Sequence[SweepCell]) -> list[str]:
    """Each cell by the overrides that not all cells have."""
    counts = Counter(word for cell in cells for word in set(cell.overrides))
    return [" ".join(w for w in cell.overrides if counts[w] < len(cells)) or "the only cell" for cell in cells]


def table(sweep: Sweep, found: Sequence[CellStatus]) -> str:
    """The listing that `python -m idp.sweep status` prints."""
    from tabulate import tabulate

    counts = Counter(status.state for status in found)
    summary = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    names = short([status.cell for status in found])
    rows = sorted(
        ((status.state, name, status.job or "", status.remark) for name, status in zip(names, found, strict=True)),
        key=lambda row: STATES.index(row[0]),
    )
    head = f"{sweep.folder}: {len(found)} cells: {summary}"
    return f"{head}\n\n{tabulate(rows, ('state', 'cell', 'job', ''), tablefmt='plain')}"
