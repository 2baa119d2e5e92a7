"""The folder of a product that is being made: what another attempt takes over of one that was killed or has failed."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from pathlib import Path

from idp.store.stopwatch import STOPWATCH

log = logging.getLogger("idp.store")

CHECKPOINT = "checkpoint"  # the folder within it that survives a kill


def adopted(place: Path, token: str) -> Path:
    """The folder to make a product in, with the checkpoint of a run that was killed.

    If that run is alive after all, its folder is gone for it: it can neither publish nor disturb.
    """
    part = place.with_name(f"{place.name}.{token[:8]}.part")
    for left in sorted(place.parent.glob(f"{place.name}*.part"), key=lambda left: left.stat().st_mtime):
        shutil.rmtree(part, ignore_errors=True)
        if left.stat().st_uid == os.geteuid():
            os.rename(left, part)
        else:
            _copy_checkpoint(left, part)
    _clear(part)
    return part


def _copy_checkpoint(left: Path, part: Path) -> None:
    """Takes over what another user's run left, as far as this one may: what is made of it has to be this user's."""
    gone = left.with_name(f"{part.name.removesuffix('.part')}-{left.stat().st_ino}.part")
    with contextlib.suppress(OSError):
        os.rename(left, gone)
        left = gone
    try:
        part.mkdir()
        with contextlib.suppress(OSError):  # there is none of an earlier version's run
            _copied(left / STOPWATCH, part / STOPWATCH)
        shutil.copytree(left / CHECKPOINT, part / CHECKPOINT, copy_function=_copied)
    except OSError as error:  # also where there is none
        log.debug("%s: nothing to go on from (%s)", left, error)
        shutil.rmtree(part / CHECKPOINT, ignore_errors=True)
    shutil.rmtree(left, ignore_errors=True)


def _copied(source: str | Path, target: str | Path) -> None:
    """Copies a file's content and times, which tell how long an earlier attempt worked, and not its permissions."""
    shutil.copyfile(source, target)
    found = os.stat(source)
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def leave_checkpoint(part: Path) -> None:
    """Keeps of what failed the checkpoint alone, with which another attempt goes on; without one, nothing."""
    with contextlib.suppress(OSError):  # what made it fail may also keep it from being removed
        _clear(part)
    with contextlib.suppress(OSError):  # one that is not empty stays
        (part / CHECKPOINT).rmdir()
    if not (part / CHECKPOINT).exists():
        with contextlib.suppress(OSError):
            (part / STOPWATCH).unlink(missing_ok=True)
            part.rmdir()


def _clear(part: Path) -> None:
    """Empties a folder that a killed run left, all but its checkpoint and the time that went into it."""
    if not part.exists():
        return
    for path in part.iterdir():
        if path.name in (CHECKPOINT, STOPWATCH):
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
