"""Locks that hold between processes and between nodes: files that their holders keep touching.

They need no locking service of the file system, only that creating a file that exists fails and that other nodes come
to see new times: ext4, XFS, NFS, Lustre, GPFS, BeeGFS, CephFS. A holder that died on this node is found out at once;
one that died on another node, or stands still, when its file was not touched for `TAKEN_AFTER_SECONDS`. A file that a
crash of the whole node left empty names no holder, and is removed after twice as long; so is any dead holder's where
the file system cannot exchange two names at once (NFS).
"""

from __future__ import annotations

import os
import time
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
        before = _touched(path)
        try:
            return held.acquire(timeout=2 * TAKEN_AFTER_SECONDS)  # longer than the lease itself needs to see a death
        except Timeout:
            if before is not None and before == _touched(path):
                path.unlink(missing_ok=True)


def is_held(path: Path) -> bool:
    """Whether a lease is there, and its holder has touched it lately: twice as long as others wait for it."""
    try:
        return time.time() - path.stat().st_mtime < 2 * TAKEN_AFTER_SECONDS
    except OSError:
        return False


def process_token(pid: int) -> str | None:
    """What tells a process from another that is given its number later, after a reboot or in another container.

    `boot/namespace/start`: the id of this system's boot, the inode of the namespace in which the number holds, and the
    process's start in clock ticks since the boot. None where there is no such process, or no /proc to ask.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if state in (b"Z", b"X") else f"{place_of_processes()}/{fields[18].decode()}"
    except (OSError, ValueError, IndexError):
        return None


def place_of_processes() -> str:
    """Where numbers of processes are those of this process: the system's boot and the namespace, as in its token.

    Raises:
        OSError: there is no /proc to ask.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"


def _touched(path: Path) -> tuple[int, int] | None:
    """What tells a lease's file from another of that name, and from itself once its holder has touched it."""
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns
