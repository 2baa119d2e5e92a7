"""Writing a sweep down: its cells as they are composed, and what of them is given to SLURM."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from idp.errors import UserError
from idp.grid import typed
from idp.records.moved import inode, relative
from idp.records.sweeps import SUBMISSIONS, SWEEP, Submission, Sweep, SweepCell, read
from idp.store import digest, write_json

log = logging.getLogger(__name__)


def identity(overrides: Sequence[str]) -> str:
    """The id of a sweep: the same words in another order are the same sweep."""
    return digest(sorted(overrides))[:10]


def list_cells(config: Any, loader: Any, jobs: Sequence[Sequence[str]]) -> Sweep:
    """Writes a sweep's cells down: those that its folder knows already, and `jobs`, composed anew.

    A cell is its config, not its words: where an edited YAML gave the same overrides another config, the cell of the
    old one stays in the list as replaced.

    Args:
        config: Hydra's config of the sweep.
        loader: Hydra's config loader.
        jobs: the overrides of each cell.
    """
    folder = Path(config.hydra.sweep.dir).absolute()
    before = _before(folder)
    new = {tuple(overrides): _cell(config, loader, list(overrides)) for overrides in jobs}
    again = {cell.folder for cell in new.values() if cell.folder is not None}  # the same run in other words
    known = before.cells if before else []
    kept = [_beside(cell, new.get(tuple(cell.overrides))) for cell in known if cell.folder not in again]
    launcher = config.hydra.runtime.choices["hydra/launcher"]
    cells = [*filter(None, kept), *new.values()]
    sweep = Sweep(folder, list(typed) or sys.argv[1:], str(Path.cwd()), launcher, cells)
    if before:
        sweep.earlier = [each for each in (*before.earlier, before.last()) if not each.is_as(sweep.last())]
    sweep.write()
    return sweep


def _before(folder: Path) -> Sweep | None:
    """What the folder's list says; None where there is none, or, after a warning, none that can be read."""
    if not (folder / SWEEP).exists():
        return None
    try:
        return read(folder)
    except UserError as error:
        log.warning("%s; it is written anew now", str(error).partition("; give")[0])
        return None


def _beside(cell: SweepCell, new: SweepCell | None) -> SweepCell | None:
    """What a cell of the list is beside what its overrides mean now; None where that is the same, or it never ran."""
    if new is None:
        return cell
    if cell.folder is None or cell.folder == new.folder or not Path(cell.folder).exists():
        return None
    return replace(cell, replaced=True)


def _cell(config: Any, loader: Any, overrides: list[str]) -> SweepCell:
    from omegaconf import open_dict

    from idp.checks import check
    from idp.recording import run_id_and_folder

    composed = loader.load_sweep_config(config, overrides)
    with open_dict(composed):
        del composed["hydra"]
    try:
        return SweepCell(overrides, str(run_id_and_folder(check(composed))[1].absolute()))
    except UserError as error:
        return SweepCell(overrides, None, str(error))


def submit(sweep: Sweep, name: str, cells: Sequence[SweepCell]) -> Submission:
    """Writes down that cells are about to be given to SLURM under a job's name."""
    folders = [cell.folder for cell in cells if cell.folder is not None]
    place = sweep.folder.absolute()
    made = Submission(name, time.time(), folders, user=os.geteuid(), place=str(place), inode=inode(place))
    _write(sweep.folder, made)
    return made


def submitted(sweep: Sweep, made: Submission, job: str) -> None:
    """Adds the number that SLURM gave."""
    _write(sweep.folder, replace(made, job=job))


def withdraw(sweep: Sweep, made: Submission) -> None:
    """Takes back what SLURM refused."""
    _file(sweep.folder, made).unlink()


def _write(folder: Path, made: Submission) -> None:
    file = _file(folder, made)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, asdict(made) | {"folders": [relative(each, folder) for each in made.folders]})


def _file(folder: Path, made: Submission) -> Path:
    return folder / SUBMISSIONS / f"{made.name}.json"
