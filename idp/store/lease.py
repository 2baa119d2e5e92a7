"""Locks that hold between processes and between nodes: files that their holders keep touching.

They need no locking service of the file system, only that creating a file that exists fails and that other nodes come
to see new times: ext4, XFS, NFS, Lustre, GPFS, BeeGFS, CephFS. A holder that died on this node is found out at once;
one that died on another node, or stands still, when its file was not touched for `TAKEN_AFTER_SECONDS`. A file that a
crash of the whole node left empty names no holder, and is removed after twice as long.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import AcquireReturnProxy, SoftFileLease

TAKEN_AFTER_SECONDS = 120.0
POLL_SECONDS = 0.5


def lease_at(path: Path) -> SoftFileLease:
    """The lease on `path`, not acquired yet. Whoever lost it goes on unawares: no result may depend on it."""
    from filelock import SoftFileLease

    return SoftFileLease(path, lease_duration=TAKEN_AFTER_SECONDS, poll_interval=POLL_SECONDS)


def wait_for(held: SoftFileLease) -> AcquireReturnProxy:
    """Acquires a lease, however long others hold it."""
    from filelock import Timeout

    path = Path(held.lock_file)
    while True:
        empty = _empty(path)
        try:
            return held.acquire(timeout=2 * TAKEN_AFTER_SECONDS)  # longer than the lease itself needs to see a death
        except Timeout:
            if empty is not None and empty == _empty(path):
                path.unlink(missing_ok=True)


def _empty(path: Path) -> tuple[int, int] | None:
    """What tells an empty file from another of that name; None if it holds something or is not there."""
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return None
    return None if stat.st_size else (stat.st_ino, stat.st_ctime_ns)
