"""How a product's files are known to be whole: large weights by size and times first, and by their hash when read.

A file of weights that was hashed once is known again by its size, its times and its inode; `<root>/verified/` has them.
A store that was copied or moved has other times, so it is hashed again. What lies on the disk may change without any of
them; so each process hashes the weights that it opens, while they are read, and takes none whose hash is wrong. Every
other file is small and hashed whenever it is asked for.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from idp.errors import UserError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
VERIFIED = "verified"
WEIGHTS = "model/*.safetensors"  # read by `idp.models.open_model`, which hashes them
LARGE_BYTES = 64 << 20  # below it a hash takes a tenth of a second at most
READERS = 4
BLOCK = 1 << 22

_hashed_here: set[tuple[str, tuple[int, ...]]] = set()  # by this process, with the stamps that they had


class Damaged(UserError):
    """Weights whose hash is wrong, found while they were opened. The store makes them anew when it is asked again."""


def hash_file(path: Path, stop: threading.Event | None = None) -> str:
    """SHA-256 of a file, in hex; of a part of it where `stop` is set on the way."""
    found, block = hashlib.sha256(), memoryview(bytearray(BLOCK))
    with open(path, "rb", buffering=0) as file:
        while (size := file.readinto(block)) and not (stop is not None and stop.is_set()):
            found.update(block[:size])
    return found.hexdigest()


class Stamps:
    """What is remembered of a product's large files: the hash that each had, and its size, times and inode then."""

    def __init__(self, place: Path):
        self.place = place
        self.file = place.parents[1] / VERIFIED / f"{place.parent.name}-{place.name}.json"

    def damage(self, files: dict[str, str], by_hash: bool = False) -> str | None:
        """The first fault among a product's files; what was found whole is remembered.

        Args:
            files: the hash of each by its name.
            by_hash: whether large files are hashed as well that are known by their times.

        Raises:
            OSError: a file cannot be read.
        """
        known, found = self._read(), {}
        for name, expected in files.items():
            path = self.place / name
            stamp = stamp_of(path)
            by_times = _is_large(name, stamp)
            if by_times and not by_hash and known.get(name) == [expected, *stamp]:
                continue
            if hash_file(path) != expected:
                self.forget()
                return f"{name} does not match its hash"
            if by_times:
                found[name] = [expected, *stamp]
                _hashed_here.add((str(path), stamp))
        if found:
            self._write(known | found)
        return None

    def unread(self, files: dict[str, str]) -> dict[str, tuple[int, ...]]:
        """The stamps of the large files that this process has not hashed, as they are now."""
        stamps = {name: stamp_of(self.place / name) for name in files if fnmatch.fnmatch(name, WEIGHTS)}
        large = {name: stamp for name, stamp in stamps.items() if _is_large(name, stamp)}
        return {n: stamp for n, stamp in large.items() if (str(self.place / n), stamp) not in _hashed_here}

    def remember(self, files: dict[str, str], stamps: dict[str, tuple[int, ...]]) -> None:
        """Says of files that they were hashed and whole when they had these stamps."""
        _hashed_here.update((str(self.place / name), stamp) for name, stamp in stamps.items())
        self._write(self._read() | {name: [files[name], *stamp] for name, stamp in stamps.items()})

    def forget(self) -> None:
        """Lets every file be hashed again."""
        with contextlib.suppress(OSError):
            self.file.unlink()

    def _read(self) -> dict[str, list[Any]]:
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, stamps: dict[str, list[Any]]) -> None:
        """Writes them all; where the disk lets it not be done, the files are hashed again the next time."""
        temporary = self.file.with_name(f".{self.file.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(exist_ok=True)
            try:
                temporary.write_text(json.dumps(stamps), encoding="utf-8")
                os.replace(temporary, self.file)
            finally:
                temporary.unlink(missing_ok=True)


def stamp_of(path: Path) -> tuple[int, ...]:
    """Size, times of the last change of its content and of anything about it, and inode.

    The second time is the system's own: who changes a file and sets its first time back leaves the second.
    """
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


@contextlib.contextmanager
def while_read(folder: Path) -> Iterator[None]:
    """Hashes the weights of a model folder beside the reading of them; nothing where the folder is not of a store.

    Raises:
        Damaged: a hash is wrong, whatever was read.
    """
    stamps, files = Stamps(folder.parent), _files(folder)
    unread = stamps.unread(files)
    if not unread:
        yield
        return
    stop = threading.Event()
    with ThreadPoolExecutor(min(READERS, len(unread)), thread_name_prefix="hash") as readers:
        hashes = {name: readers.submit(hash_file, folder.parent / name, stop) for name in unread}
        try:
            yield
        except Exception as error:  # what is damaged may not even be read
            _refuse_damaged(stamps, files, {name: found.result() for name, found in hashes.items()}, error)
            raise
        except BaseException:
            stop.set()
            raise
        _refuse_damaged(stamps, files, {name: found.result() for name, found in hashes.items()})
    stamps.remember(files, unread)


def _refuse_damaged(
    stamps: Stamps, files: dict[str, str], found: dict[str, str], cause: Exception | None = None
) -> None:
    for name, value in found.items():
        if value != files[name]:
            stamps.forget()
            raise Damaged(
                f"{stamps.place / name}: does not match its hash; give its command again, which makes it anew"
            ) from cause


def _files(folder: Path) -> dict[str, str]:
    """The files of the product whose model lies in `folder`, with their hashes; empty where it is no product's."""
    try:
        manifest = json.loads((folder.parent / MANIFEST).read_text(encoding="utf-8"))
        return dict(manifest["files"]) if manifest["key"] == folder.parent.name else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _is_large(name: str, stamp: tuple[int, ...]) -> bool:
    return stamp[0] >= LARGE_BYTES and fnmatch.fnmatch(name, WEIGHTS)
