"""What a sweep's folder holds: the command and its cells, and what of them was given to SLURM.

<output>/sweeps/<id>/sweep.json           the command and its cells; the id is the hash of the command's words
<output>/sweeps/<id>/submissions/*.json   written before SLURM is asked, so that no job is ever unknown
<output>/sweeps/<id>/jobs/                SLURM's output of each job
<output>/runs/<name>/                     a cell's own folder, whichever sweeps it belongs to

Folders below <output> are written relative to the sweep's own, so that <output> may be moved and copied.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from idp.errors import UserError
from idp.records.moved import given_here, located, of_another, place_before, relative
from idp.store import write_json

log = logging.getLogger(__name__)

SWEEP, SUBMISSIONS = "sweep.json", "submissions"
NOT_OF_CELLS = ("hydra.launcher.", "hydra/launcher=", "hydra.sweep.dir=", "output=", "store=")  # of a command's words


@dataclass(frozen=True)
class SweepCell:
    """One run of a sweep: its overrides, and its folder or, where its config is not valid, what is wrong with it.

    `replaced`: its overrides have come to mean another config since, as where a YAML was edited; another cell has that.
    """

    overrides: list[str]
    folder: str | None
    error: str | None = None
    replaced: bool = False


@dataclass(frozen=True)
class Submission:
    """Cells given to SLURM together: the job's name, which no other job has, and the runs' folders in the array.

    `time` is in seconds since 1970. `job` is the number that SLURM gave, where it could still be written down. `user`
    is who submitted them, by number, and `place` and `inode` are the sweep's folder then: None where an earlier version
    wrote it.
    """

    name: str
    time: float
    folders: list[str]
    job: str | None = None
    user: int | None = None
    place: str | None = None
    inode: int | None = None

    def of_another(self, sweep: Path) -> bool:
        """Whether these are jobs of the sweep that this one was copied from."""
        return of_another(self.folders, self.place, self.inode, sweep)

    def number(self, index: int) -> str | None:
        """The number of one of its jobs, as squeue shows it."""
        return self.job if self.job is None or len(self.folders) == 1 else f"{self.job}_{index}"


@dataclass(frozen=True)
class Command:
    """A command that was given, the folder that it was given in, and the launcher of its cells."""

    command: list[str]
    directory: str
    launcher: str

    def is_as(self, other: Command) -> bool:
        """Whether both have the same cells: the launcher's options, places and the order of the words may differ."""
        return self._of_cells() == other._of_cells()

    def moved(self, place: str, sweep: Path) -> Command:
        """As it would be given where the sweep is now whose folder was at `place` when this was written."""
        words, directory = given_here(self.command, self.directory, place, sweep.absolute())
        return Command(words, directory, self.launcher)

    def _of_cells(self) -> list[str]:
        return sorted(word for word in self.command if not word.startswith(NOT_OF_CELLS))


@dataclass
class Sweep:
    """A sweep's folder and what its `sweep.json` says; `directory` is where its command was given.

    `earlier` has the other commands that were given for this folder, whose cells are among `cells`.
    """

    folder: Path
    command: list[str]
    directory: str
    launcher: str
    cells: list[SweepCell]
    earlier: list[Command] = field(default_factory=list)

    def last(self) -> Command:
        """The command that was given last."""
        return Command(self.command, self.directory, self.launcher)

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        values = {key: value for key, value in asdict(self).items() if key != "folder"}
        place = self.folder.absolute()
        for cell in values["cells"]:
            cell["folder"] = cell["folder"] and relative(cell["folder"], place)
        for command in (values, *values["earlier"]):
            if place.is_relative_to(command["directory"]):
                command["directory"] = os.path.relpath(command["directory"], place)
        write_json(self.folder / SWEEP, values | {"place": str(place)})


def read(folder: Path) -> Sweep:
    """The sweep of a folder.

    Raises:
        UserError: it is none.
    """
    try:
        values = json.loads((folder / SWEEP).read_text(encoding="utf-8"))
        written = [SweepCell(**cell) for cell in values.pop("cells")]
        if not all(isinstance(cell.overrides, list) and isinstance(cell.folder, str | None) for cell in written):
            raise TypeError("a cell without overrides")
        cells = [replace(cell, folder=cell.folder and located(cell.folder, folder)) for cell in written]
        pairs = [(old.folder, new.folder) for old, new in zip(written, cells, strict=True) if old.folder and new.folder]
        place = values.pop("place", None) or place_before(pairs, folder)
        earlier = [Command(**command).moved(place, folder) for command in values.pop("earlier", [])]
        last = Command(values.pop("command"), values.pop("directory"), values.pop("launcher")).moved(place, folder)
        return Sweep(folder, last.command, last.directory, last.launcher, cells, earlier, **values)
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no sweep here ({SWEEP} is missing); name a folder of outputs/sweeps") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"{folder / SWEEP}: cannot be read ({reason}); give the sweep's command again, which writes it anew"
        ) from error


def newest(sweeps: Path) -> Path:
    """The folder of the sweep whose command was given last.

    Raises:
        UserError: there is none.
    """
    found = sorted(sweeps.glob(f"*/{SWEEP}"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise UserError(
            f"no sweep under {sweeps}; start one with `python -m idp.run -m hydra/launcher=slurm ...`, or name its"
            " folder"
        )
    return found[-1].parent


def last_submissions(sweeps: Path) -> dict[str, tuple[Submission, int]]:
    """Of each run's folder, the last submission that it was in, by whichever sweep, and its place there."""
    last: dict[str, tuple[Submission, int]] = {}
    known = ((file.parent.parent, _submission(file)) for file in sorted(sweeps.glob(f"*/{SUBMISSIONS}/*.json")))
    here = [(sweep, made) for sweep, made in known if made is not None and not made.of_another(sweep)]
    for sweep, made in sorted(here, key=lambda pair: pair[1].time):
        last |= {located(folder, sweep): (made, index) for index, folder in enumerate(made.folders)}
    return last


def _submission(file: Path) -> Submission | None:
    """What a file says was given to SLURM; None, and a warning, of one that says nothing, as a full disk leaves."""
    try:
        made = Submission(**json.loads(file.read_text(encoding="utf-8")))
        if isinstance(made.name, str) and isinstance(made.time, (int, float)) and isinstance(made.folders, list):
            return made
        reason = "a field of another type"
    except (OSError, ValueError, TypeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    log.warning("%s: cannot be read (%s); the jobs that it tells of are not known here", file, reason)
    return None
