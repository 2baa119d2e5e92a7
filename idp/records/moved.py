"""Sweeps that were moved or copied: where their runs are now, and their commands as they would be given there."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from idp.records.sweeps import Command, Submission


def relative(run: str, sweep: Path) -> str:
    """A run's folder as a sweep's files have it: relative to the sweep's, where both are of one output."""
    sweep = sweep.absolute()
    return os.path.relpath(run, sweep) if Path(run).is_relative_to(output_of(sweep)) else run


def located(run: str, sweep: Path) -> str:
    """Where a run's folder is that a file of a sweep names.

    Earlier versions wrote absolute paths. Where the output was moved or copied since, its own runs are meant.
    """
    sweep, old = sweep.absolute(), Path(run)
    if not old.is_absolute():
        return os.path.normpath(sweep / run)
    here = output_of(sweep) / old.parent.name / old.name
    copied = (old.parent.parent / sweep.parent.name / sweep.name / "sweep.json").exists()
    return str(here if here.exists() or copied or not old.parent.parent.exists() else old)


def output_of(sweep: Path) -> Path:
    """The output that a sweep's folder lies in, if it is where it is by default."""
    return sweep.parent.parent


def place_before(runs: list[tuple[str, str]], sweep: Path) -> str:
    """Where a sweep's folder was when an earlier version wrote it.

    Args:
        runs: its runs' folders as they are written, and where they are now.
        sweep: its folder now.
    """
    for old, new in runs:
        if old != new:
            return str(Path(old).parent.parent / sweep.parent.name / sweep.name)
    return str(sweep.absolute())


def of_another(made: Submission, sweep: Path) -> bool:
    """Whether jobs are those of the sweep that this one was copied from: they write into the other's folders.

    One that is only seen by another path, as through another mount, has the same inode.
    """
    if made.place is None:
        return any(located(run, sweep) != run and Path(run).parent.parent.exists() for run in made.folders)
    return made.place != str(sweep.absolute()) and made.inode != inode(sweep)


def inode(folder: Path) -> int | None:
    """The folder's number in its file system; None where it is not to be had."""
    try:
        return folder.stat().st_ino
    except OSError:
        return None


def given_here(command: Command, place: str, sweep: Path) -> Command:
    """A sweep's command as it would be given where the sweep is now, with the output and the list that it has there.

    Args:
        command: with its directory as it was written, perhaps relative to the sweep's folder.
        place: where the sweep's folder was when that was written.
        sweep: its folder now, absolute.
    """
    old, new = Path(place), Path(os.path.normpath(sweep / command.directory))
    if old == sweep or _same(old, sweep):
        return replace(command, directory=str(new))
    before = Path(os.path.normpath(old / command.directory))
    output, now = output_of(old), output_of(sweep)
    along = os.path.relpath(output, before) == os.path.relpath(now, new)  # the command's directory, and all in it
    if not along and before.is_dir():
        new = before
    words = [_moved(word, before, output, now) for word in command.command]
    words = [word for word in words if not word.startswith(("output=", "hydra.sweep.dir="))]
    return replace(command, command=[*words, _word("output", now), _word("hydra.sweep.dir", sweep)], directory=str(new))


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _moved(word: str, directory: Path, output: Path, now: Path) -> str:
    """An option whose value is a place below the output; others as they are."""
    key, equals, value = word.partition("=")
    if not equals or "/" not in value:
        return word
    place = Path(os.path.normpath(directory / value.strip("'\"")))
    return _word(key, now / place.relative_to(output)) if place.is_relative_to(output) else word


def _word(key: str, place: Path) -> str:
    text = str(place).replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{text}'"
