"""Where each cell of a sweep stands, from the runs' status files and SLURM's queue."""

from __future__ import annotations

import calendar
import contextlib
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
from idp.store.lease import is_held, place_of_processes, process_token
from idp.sweep import queue

STATES = ("done", "running", "queued", "failed", "missing", "unknown")
KILLED, UNBORN = "killed", "ended before the run began"  # what no status file can say
NO_RECORD = f"its {RECORD} is gone; the sweep's command makes it again"
# What a status file has to say; the names are those of `idp.status.Status`.
SAID = {"state": str, "stage": str, "started": str, "host": str, "pid": int}
MAY_BE_NULL = ("job", "error")


class Odd(ValueError):
    """A status file that says nothing, or not what one says."""


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
        return self.state in ("failed", "missing", "unknown") and not self.cell.replaced


def statuses(sweep: Sweep) -> list[CellStatus]:
    """Where every cell stands now. A cell that two lists of overrides lead to is given once.

    Raises:
        UserError: cells were given to SLURM, and squeue does not answer.
    """
    last = last_submissions(sweep.folder.parent)
    cells = list({cell.folder or tuple(cell.overrides): cell for cell in sweep.cells}.values())
    folders = [cell.folder for cell in cells if cell.folder is not None and not _is_done(Path(cell.folder))]
    submissions = [last[folder][0] for folder in folders if folder in last]
    jobs = queue.jobs({made.name for made in submissions}) if submissions else {}
    hidden = any(made.user != os.geteuid() for made in submissions) and queue.hides_others()
    found = [_status(cell, last.get(cell.folder or ""), jobs, hidden) for cell in cells]
    lost = [status.cell.folder for status in found if status.remark in (KILLED, UNBORN)]
    asked = [last[folder][0] for folder in lost if folder in last]
    ways = queue.ended({made.name for made in asked}, min(made.time for made in asked)) if asked else {}
    return [_explained(status, last, ways, sweep) for status in found]


def _is_done(folder: Path) -> bool:
    try:
        return _run_status(folder).get("state") == "done" and (folder / RECORD).exists()
    except Odd:
        return False


def _status(
    cell: SweepCell, last: tuple[Submission, int] | None, jobs: dict[queue.Place, queue.Job], hidden: bool
) -> CellStatus:
    """`hidden`: whether SLURM shows no jobs but one's own."""
    if cell.folder is None:
        return CellStatus(cell, "failed", remark=cell.error or "")
    folder = Path(cell.folder)
    try:
        status = _run_status(folder)
    except Odd as odd:
        submission, index = last or (None, 0)
        if submission is not None and (job := jobs.get((submission.name, index))):
            return CellStatus(cell, "running" if job.running else "queued", job.number, str(odd))
        return CellStatus(cell, "unknown", remark=str(odd))
    if _is_done(folder):
        return CellStatus(cell, "done", status.get("job"))
    submission, index = last or (None, 0)
    ours = submission is not None and status.get("submission") == submission.name
    if submission is not None and (job := jobs.get((submission.name, index))):
        if job.running:
            return CellStatus(cell, "running", job.number, status["stage"] if ours else "starting")
        again = f"goes on at {status['stage']}" if ours else ""
        return CellStatus(cell, "queued", job.number, ", ".join(filter(None, (job.reason.replace("None", ""), again))))
    others = submission is not None and submission.user != os.geteuid()
    if status.get("state") == "running" and (others or not ours) and _alive(folder, status):
        return CellStatus(cell, "running", status.get("job"), f"{status['stage']} on {status['host']}")
    unborn = submission is not None and not ours and _started(status) < submission.time
    if submission is not None and others and hidden and (unborn or (ours and status.get("state") == "queued")):
        return CellStatus(cell, "queued", submission.number(index), "or ended: SLURM shows you no jobs of others")
    if submission is not None and unborn:
        return CellStatus(cell, "failed", submission.number(index), UNBORN)
    if not status:
        return CellStatus(cell, "missing")
    ends = {"failed": status.get("error") or "failed", "done": NO_RECORD}
    return CellStatus(cell, "failed", status.get("job"), ends.get(status["state"], KILLED))


def _explained(status: CellStatus, last: dict, ways: dict[queue.Place, str], sweep: Sweep) -> CellStatus:
    """Says of a run that could not say it itself how it ended, as far as that is known."""
    if status.remark not in (KILLED, UNBORN):
        return status
    submission, index = last.get(status.cell.folder, (None, 0))
    way = ways.get((submission.name, index)) if submission else None
    remark = status.remark
    if remark == KILLED and status.cell.folder is not None:
        with contextlib.suppress(Odd):  # written since
            remark = f"{remark} at stage {_run_status(Path(status.cell.folder)).get('stage')}"
    log = sweep.folder / "jobs" / f"{status.job}_0_log.err"
    where = f"see {log}" if log.exists() else ""
    return CellStatus(status.cell, status.state, status.job, "; ".join(filter(None, (remark, way, where))))


def _run_status(folder: Path) -> dict[str, Any]:
    """What a run says of itself; nothing where it never began.

    Raises:
        Odd: its file is none of a run's, in one line that names it.
    """
    file = folder / STATUS
    try:
        status = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise Odd(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    said = status if isinstance(status, dict) else {}
    lacking = [name for name, kind in SAID.items() if type(said.get(name)) is not kind]
    if not lacking and any(not isinstance(status.get(name), str | None) for name in MAY_BE_NULL):
        lacking = list(MAY_BE_NULL)
    if not lacking:
        try:
            time.strptime(status["started"], TIME)
        except ValueError:
            lacking = ["started"]
    if lacking:
        raise Odd(f"{file} is no run's status (it lacks {', '.join(lacking)}); the sweep's command writes it anew")
    return status


def _started(status: dict[str, Any]) -> float:
    """When a run last started, in whole seconds since 1970, rounded up; 0 where it never did."""
    return calendar.timegm(time.strptime(status["started"], TIME)) + 1 if status else 0


def _alive(folder: Path, status: dict[str, Any]) -> bool:
    """Whether the process that holds a run's folder lives: by its token here, by how fresh its lease is elsewhere.

    Of a folder that was copied, the file names the process that holds the other.
    """
    if not (folder / LOCK).exists():
        return False
    boot_and_namespace, _, _ = (status.get("process") or "").rpartition("/")
    try:
        if boot_and_namespace == place_of_processes() and status.get("folder") in (None, str(folder.absolute())):
            return process_token(status["pid"]) == status["process"]
    except OSError:
        pass
    return is_held(folder / LOCK) and not _gone(status)


def _gone(status: dict[str, Any]) -> bool:
    """Whether a run of a version that wrote no token was one of this machine, which has no such process any more."""
    if status.get("process") is not None or status["host"] != socket.gethostname():
        return False
    try:
        os.kill(status["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


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
    names = [
        name + (" (of the config before it was edited)" if status.cell.replaced else "")
        for name, status in zip(short([status.cell for status in found]), found, strict=True)
    ]
    rows = sorted(
        ((status.state, name, status.job or "", status.remark) for name, status in zip(names, found, strict=True)),
        key=lambda row: STATES.index(row[0]),
    )
    head = f"{sweep.folder}: {len(found)} cells: {summary}"
    return f"{head}\n\n{tabulate(rows, ('state', 'cell', 'job', ''), tablefmt='plain')}"
