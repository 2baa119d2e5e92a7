"""The disk full at each write: a clear error, a store that stays valid, and a rerun that completes.

Output and store lie on a tmpfs of a few megabytes. Whatever opens a file there is held by the kernel (fanotify's
permission events) until it is let go on; at the n-th opening of a file to be written the disk is filled up first. The
error is the kernel's own, and writers in Rust and C++ meet it as those in Python do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import re
import select
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.runs import Bench, Ended, Fault, Result, same, track

SIZE = 64 << 20
ROOM = (0, 0, 1, 3, 20)  # pages that are left at the moment when the disk fills up

# linux/fanotify.h
CLASS_CONTENT, CLOSE_ON_EXEC, NONBLOCK = 0x4, 0x1, 0x2
MARK_ADD, MARK_FLUSH, MARK_MOUNT, OPEN_PERMISSION, ALLOW = 0x1, 0x80, 0x10, 0x10000, 0x1
EVENT = struct.Struct("=IBBHQii")
ANSWER = struct.Struct("=iI")


class Unavailable(Exception):
    """This machine lets nobody mount a tmpfs or watch it."""


@dataclass
class Figures:
    """Openings for writing at which the disk was full, by whose file it was, and how the runs ended."""

    full: Counter = field(default_factory=Counter)
    refused: Counter = field(default_factory=Counter)

    def rows(self) -> list[list[object]]:
        """For a table."""
        rows = [[kind, self.full[kind], self.refused[kind], self.full[kind] - self.refused[kind]] for kind in self.full]
        total, refused = sum(self.full.values()), sum(self.refused.values())
        return [*rows, ["**all**", total, refused, total - refused]]


def check(folder: Path, count: int | None, seed: int) -> Figures:
    """Fills the disk at every opening for writing of a run, each in a run of its own.

    Args:
        folder: where the small disk is mounted.
        count: openings to try, evenly spaced; None: all.
        seed: draws how many pages are left.

    Raises:
        Fault: the error was not one clear line, a stored product was not whole, or the rerun did not complete.
        Unavailable: as said.
    """
    with Disk(folder) as disk:
        bench = Bench(folder)
        bench.said = folder.parent / "said"
        ended, opened = disk.watch(bench, None, 0)
        if ended.status:
            raise Fault(f"the undisturbed run fails: {ended.errors}")
        whole = bench.result()
        numbers = range(len(opened))
        if count is not None:
            numbers = sorted({round(number * (len(opened) - 1) / max(count - 1, 1)) for number in range(count)})
        figures = Figures()
        for number in track(numbers, "full disks"):
            bench.clear()
            room = random.Random(f"{seed} {number}").choice(ROOM)
            ended, opened = disk.watch(bench, number, room)
            try:
                kind = kind_of(opened[-1], bench.output)
                figures.full[kind] += 1
                figures.refused[kind] += _ended_well(ended, bench, whole)
                _store_is_valid(bench)
                disk.empty()
                bench.run()
                same(whole, bench.result())
                if odd := bench.leftovers():
                    raise Fault(f"left {odd}")
            except Fault as fault:
                raise Fault(f"opening {number} ({opened[-1]}, {room} pages left): {fault}\n{ended.errors}") from fault
            finally:
                disk.empty()
    return figures


class Disk(contextlib.AbstractContextManager):
    """A small disk of its own that can be filled at a moment.

    Args:
        place: where it is mounted; the folder is made.

    Raises:
        Unavailable: the system does not allow it.
    """

    def __init__(self, place: Path):
        self.place = place
        place.mkdir(parents=True, exist_ok=True)
        options = ["-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
        done = subprocess.run(["mount", *options], capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"no tmpfs can be mounted here: {done.stderr.strip()}")
        self.ballast = os.open(place / "ballast", os.O_CREAT | os.O_RDWR)  # opening it later would be held as well
        self.library = ctypes.CDLL(None, use_errno=True)
        self.events = self.library.fanotify_init(CLASS_CONTENT | CLOSE_ON_EXEC | NONBLOCK, os.O_RDONLY | os.O_CLOEXEC)
        if self.events < 0:
            self.__exit__()
            raise Unavailable(f"fanotify is not for us: {os.strerror(ctypes.get_errno())}")

    def __exit__(self, *_: object) -> None:
        os.close(self.ballast)
        if self.events >= 0:
            os.close(self.events)
        subprocess.run(["umount", "--lazy", str(self.place)], check=True)

    def watch(self, bench: Bench, number: int | None, room: int) -> tuple[Ended, list[str]]:
        """A run that finds the disk full, but for `room` pages, from opening `number` on; None: never.

        Returns:
            how it ended, and the files opened for writing up to that moment.
        """
        opened: list[str] = []
        self._mark(MARK_ADD, OPEN_PERMISSION)
        process = bench.start()
        while process.poll() is None:
            for file in self._held(0.05):
                if _to_be_written(file) and (number is None or len(opened) <= number):
                    opened.append(os.readlink(f"/proc/self/fd/{file}"))
                    if len(opened) - 1 == number:
                        self.fill(room)
                os.write(self.events, ANSWER.pack(file, ALLOW))
                os.close(file)
        self._mark(MARK_FLUSH, 0)
        return process.wait(), opened

    def fill(self, room: int) -> None:
        """Leaves `room` pages."""
        found = os.fstatvfs(self.ballast)
        os.posix_fallocate(self.ballast, 0, max(found.f_bavail - room, 1) * found.f_frsize)

    def empty(self) -> None:
        """There is space again."""
        os.ftruncate(self.ballast, 0)

    def _held(self, seconds: float) -> Iterator[int]:
        """The files whose opening waits for leave."""
        if select.select([self.events], [], [], seconds)[0]:
            data = os.read(self.events, 64 * EVENT.size)
            for start in range(0, len(data), EVENT.size):
                *_, file, _ = EVENT.unpack_from(data, start)
                yield file

    def _mark(self, what: int, mask: int) -> None:
        place = os.fsencode(self.place)
        if self.library.fanotify_mark(self.events, what | MARK_MOUNT, ctypes.c_uint64(mask), -100, place) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(self.place))


def kind_of(file: str, output: Path) -> str:
    """Whose file it is: a stage's product, its checkpoint, the run's folder, or one that only asks for room."""
    parts = Path(file).relative_to(output).parts
    if len(parts) < 3 or "(deleted)" in parts[-1]:
        return "asking whether one can write"
    if parts[0] == "runs":
        return "run folder"
    return f"{parts[1]}, checkpoint" if "checkpoint" in parts else parts[1]


def _ended_well(ended: Ended, bench: Bench, whole: Result) -> bool:
    """Whether the run was refused, in one clear line; one that ended all the same must have its whole result."""
    if ended.status == 0:
        same(whole, bench.result())
        return False
    if ended.one_error is None:
        raise Fault(f"exit status {ended.status}, not one line")
    if not re.search(r"No space left on device.*[Ff]ree some space", ended.one_error):
        raise Fault("not a clear line")
    return True


def _store_is_valid(bench: Bench) -> None:
    from idp.errors import UserError
    from idp.store import Store

    for place in bench.made():
        stage, key = place.split("/")
        try:
            Store(bench.store).get(stage, key)
        except UserError as error:
            raise Fault(str(error)) from error


def _to_be_written(file: int) -> bool:
    """Whether a file that is opened will get bytes: it is empty as yet, or it grows line by line. Locks stay empty."""
    name = os.readlink(f"/proc/self/fd/{file}")
    grows = Path(name).name.startswith("batches-")
    return grows or (os.fstat(file).st_size == 0 and not name.endswith(".lock"))
