"""Sweeps that were moved or copied: where their runs are now, and their commands as they would be given there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from idp.quoting import quoted


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


def of_another(runs: Sequence[str], place: str | None, number: int | None, sweep: Path) -> bool:
    """Whether jobs are those of the sweep that this one was copied from: they write into the other's folders.

    One that is only seen by another path, as through another mount, has the same inode.

    Args:
        runs: the jobs' folders, as they are written.
        place: where the sweep's folder was when they were submitted, and
        number: its inode then; None where an earlier version submitted them.
        sweep: its folder now.
    """
    if place is None:
        return any(located(run, sweep) != run and Path(run).parent.parent.exists() for run in runs)
    return place != str(sweep.absolute()) and number != inode(sweep)


def inode(folder: Path) -> int | None:
    """The folder's number in its file system; None where it is not to be had."""
    try:
        return folder.stat().st_ino
    except OSError:
        return None


def given_here(command: list[str], directory: str, place: str, sweep: Path) -> tuple[list[str], str]:
    """A sweep's command as it would be given where the sweep is now, with the output and the list that it has there.

    Args:
        command: its words.
        directory: where it was given, as it was written: perhaps relative to the sweep's folder.
        place: where the sweep's folder was when that was written.
        sweep: its folder now, absolute.

    Returns:
        the words, and the directory to give them in.
    """
    old, new = Path(place), Path(os.path.normpath(sweep / directory))
    if old == sweep or _same(old, sweep):
        return command, str(new)
    before = Path(os.path.normpath(old / directory))
    output, now = output_of(old), output_of(sweep)
    along = os.path.relpath(output, before) == os.path.relpath(now, new)  # the command's directory, and all in it
    if not along and before.is_dir():
        new = before
    words = [_moved(word, before, output, now) for word in command]
    words = [word for word in words if not word.startswith(("output=", "hydra.sweep.dir="))]
    return [*words, _word("output", now), _word("hydra.sweep.dir", sweep)], str(new)


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _moved(word: str, directory: Path, output: Path, now: Path) -> str:
    """An option whose value is a place below the output; others as they are."""
    key, equals, value = word.partition("=")
    bare = value.strip("'\"")
    if not equals or "/" not in value or (bare == value and set(value) & set(",[]{}()")):  # nor lists and grids
        return word
    place = Path(os.path.normpath(directory / bare))
    return _word(key, now / place.relative_to(output)) if place.is_relative_to(output) else word


def _word(key: str, place: Path) -> str:
    return f"{key}={quoted(str(place))}"
