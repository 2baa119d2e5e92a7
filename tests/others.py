"""Folders that are read-only, and other users; a test is skipped by name where this machine has neither."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import shutil
import stat
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from idp.store.lease import lease_at

FORKING = multiprocessing.get_context("fork")
NOBODY = 65534
GROUP = 54321  # of those who share a store: any number will do


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Inside, nothing below a folder can be written: by its mount for root, whom permissions do not hold."""
    if os.geteuid() == 0:
        _mount("--bind", folder, folder)
        try:
            _mount("-o", "remount,ro,bind", folder)
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        return
    folders = [path for path in (folder, *folder.rglob("*")) if path.is_dir()]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in folders}
    for path, mode in reversed(modes.items()):
        path.chmod(mode & 0o555)
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def _mount(*words: str | Path) -> None:
    if subprocess.run(["mount", *map(str, words)], capture_output=True).returncode:
        pytest.skip("mounting a folder again, read-only, needs to be allowed")


@contextlib.contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder that a group may write in, as one is that several users share: what is made in it is of that group."""
    if os.geteuid() != 0:
        pytest.skip("acting as another user needs root")
    place = Path(tempfile.mkdtemp(prefix="idp-shared-"))  # pytest's own folders let nobody else in
    try:
        os.chown(place, -1, GROUP)
        place.chmod(0o2775)
        yield place
    finally:
        shutil.rmtree(place)


def as_user(function: Callable[..., Any], *arguments: Any, user: int = NOBODY, umask: int = 0o002) -> Any:
    """What a function gives in a process of another user, who is in `GROUP`.

    Raises:
        AssertionError: it raised something; the traceback is in it.
        EOFError: the process ended without a word.
    """
    _import_what_leases_import()
    ours, theirs = FORKING.Pipe()
    process = FORKING.Process(target=_act, args=(theirs, function, arguments, user, umask))
    process.start()
    theirs.close()
    try:
        done, value = ours.recv()
    finally:
        process.join()
    assert done, value
    return value


@functools.cache
def _import_what_leases_import() -> None:
    """Takes a lease over from a process that is dead: another user may not be allowed to read the libraries' files."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lock"
        process = FORKING.Process(target=_die_with, args=(path,))
        process.start()
        process.join()
        with lease_at(path):
            pass


def _die_with(path: Path) -> None:
    held = lease_at(path)
    held.acquire()
    os._exit(0)


def _act(channel: Any, function: Callable[..., Any], arguments: tuple, user: int, umask: int) -> None:
    try:
        os.setgroups([GROUP])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        os.umask(umask)
        channel.send((True, function(*arguments)))
    except BaseException:
        channel.send((False, traceback.format_exc()))
