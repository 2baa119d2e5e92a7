"""Who may read and write what lies in a shared folder: what the umask and the folder's group say, whoever wrote it.

Some libraries write through temporary files, which nobody else may read (safetensors, Python's `tempfile`), or copy the
permissions of what they copy.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def as_umask_says(folder: Path) -> None:
    """Gives all below a folder that this process has made the permissions of the folder itself.

    The folder has them of the system, from the umask, the group and any access list of the folder above it.

    Raises:
        OSError: a file is another user's.
    """
    wanted = folder.stat().st_mode & 0o7777
    for path in _below(folder):
        mode = wanted if path.is_dir() else wanted & 0o666
        if path.stat().st_mode & 0o7777 != mode:
            path.chmod(mode)


def as_its_folder(file: Path) -> None:
    """Gives a file that this process has made the permissions of the folder that it lies in."""
    file.chmod(file.parent.stat().st_mode & 0o666)


def why_not_writable(folder: Path) -> str | None:
    """Why nothing can be created in a folder, in the system's words; None where it can. Leaves nothing behind.

    Of a folder that is not there, the nearest one above it is asked.
    """
    folder = _nearest(folder)
    try:
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        with tempfile.TemporaryFile(dir=folder):  # without a name, where the system can
            return None
    except OSError as error:
        return f"{error.strerror or error}: {folder}"


def seems_writable(folder: Path) -> bool:
    """Whether permissions and mount say that something can be created in a folder, or in the nearest one above it."""
    return os.access(_nearest(folder), os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def can_be_removed(folder: Path) -> bool:
    """Whether this user may empty a folder and all below it."""
    return all(seems_writable(path) for path in (folder, *_below(folder)) if path.is_dir())


def _nearest(folder: Path) -> Path:
    return next((path for path in (folder, *folder.parents) if path.exists()), folder)


def _below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if not path.is_symlink())
