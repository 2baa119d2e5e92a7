"""Locks that hold between processes and between nodes: files that their holders keep touching.

They need no locking service of the file system, only that creating a file that exists fails and that other nodes come
to see new times: ext4, XFS, NFS, Lustre, GPFS, BeeGFS, CephFS. A holder that died on this node is found out at once;
one that died on another node, or stands still, when its file was not touched for `TAKEN_AFTER_SECONDS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import SoftFileLease

TAKEN_AFTER_SECONDS = 120.0
POLL_SECONDS = 0.5


def lease(path: Path) -> SoftFileLease:
    """The lease on `path`, not acquired yet. Whoever lost it goes on unawares: no result may depend on it."""
    from filelock import SoftFileLease

    return SoftFileLease(path, lease_duration=TAKEN_AFTER_SECONDS, poll_interval=POLL_SECONDS)
