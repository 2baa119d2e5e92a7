"""`python(...)`: a command line in a process of its own, forked from one that has the imports behind it."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

PRELOADED = Path(__file__).with_name("preloaded.py")
# Variables that are read when they are used; at import only Hugging Face's cache is looked for in HOME. A process whose
# other variables differ has imports of its own.
READ_LATE = (
    "CUDA_VISIBLE_DEVICES",
    "HOME",
    "IDP_",
    "PATH",
    "PWD",
    "PYTEST_",
    "SLURM_",
    "SUBMITIT_",
    "WANDB_",
)
KEPT = 2  # preloaded processes at a time


def python(
    *words: str | os.PathLike[str],
    cold: bool = False,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """`python *words` to its end, with what it printed.

    Args:
        words: `-m`, a module and its words, or `-c`, code and its words.
        cold: start the interpreter anew, as a user does.
        env: variables, all of them; None: this process's.
        cwd: the folder to run in.
        timeout: seconds, after which it is killed.

    Raises:
        subprocess.TimeoutExpired: its time was up.
    """
    command = [sys.executable, *map(str, words)]
    if cold or not _can_fork(words):
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=timeout)
    process = Process(*words, env=env, cwd=cwd)
    process.wait(timeout)
    return subprocess.CompletedProcess(command, process.returncode, process.out, process.errors)


class Process:
    """As `subprocess.Popen` of `python *words`: it runs until it ends or is killed.

    Args:
        words: as of `python`.
        env: variables, all of them; None: this process's.
        cwd: the folder to run in.
    """

    def __init__(
        self,
        *words: str | os.PathLike[str],
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ):
        self.returncode: int | None = None
        self._files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        environment = dict(os.environ if env is None else env)
        command = {"words": [*map(str, words)], "environment": environment, "folder": str(cwd or os.getcwd())}
        self.pid, self._ended = _preloaded(environment).fork(command, self._files)

    def poll(self) -> int | None:
        """Its exit status, negative where a signal ended it; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        """Waits for its end; after `timeout` seconds it is killed, unless that is 0.

        Raises:
            subprocess.TimeoutExpired: it has not ended.
        """
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                if timeout:
                    self.kill()
                raise subprocess.TimeoutExpired("python", timeout, self.out, self.errors)
            status = os.read(self._ended, 16)
            os.close(self._ended)
            if not status:
                raise RuntimeError("the process that it was forked from has died")
            self.returncode = int(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, whatever it is doing."""
        self.send_signal(signal.SIGKILL)

    @property
    def out(self) -> str:
        return _text(self._files[0])

    @property
    def errors(self) -> str:
        return _text(self._files[1])


def _text(file: BinaryIO) -> str:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")


class _Preloaded:
    """A process of `tests/preloaded.py`, whose forks have in common what imports read of the environment."""

    def __init__(self, environment: Mapping[str, str]):
        self.read_early = _read_early(environment)
        start = self.read_early | {name: environment[name] for name in ("HOME", "PATH") if name in environment}
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, str(PRELOADED), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=start,
                start_new_session=True,  # Ctrl-C is for us, and ends it by ending us
            )
        self.set_by_imports = json.loads(self._answer())

    def suits(self, environment: Mapping[str, str]) -> bool:
        """Whether imports would find the same; what they set themselves, those of this process may have set as well."""
        mine, wanted = self.read_early, _read_early(environment)
        odd = dict(mine.items() ^ wanted.items())
        return all(name not in mine and wanted.get(name) == self.set_by_imports.get(name) for name in odd)

    def fork(self, command: Any, files: list[Any]) -> tuple[int, int]:
        """Starts a command; its process id, and a descriptor from which its exit status can be read when it ends."""
        ours, theirs = os.pipe()
        try:
            message = json.dumps(command).encode()
            self.control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * len(message) + 4096)
            socket.send_fds(self.control, [message], [*(file.fileno() for file in files), theirs])
        finally:
            os.close(theirs)
        return int(self._answer()), ours

    def _answer(self) -> bytes:
        if not (answer := self.control.recv(1 << 20)):
            raise RuntimeError(f"{PRELOADED.name} ended with exit status {self.process.wait()}")
        return answer

    def end(self) -> None:
        """Ends it and all its forks."""
        self.control.close()
        self.process.wait()


_all: list[_Preloaded] = []


def _preloaded(environment: Mapping[str, str]) -> _Preloaded:
    for each in _all:
        if each.suits(environment):
            return each
    if not _all:
        atexit.register(end_all)
    elif len(_all) == KEPT:
        _all.pop().end()  # the first one is this process's own, mostly
    _all.append(_Preloaded(environment))
    return _all[-1]


def end_all() -> None:
    """Ends all preloaded processes."""
    while _all:
        _all.pop().end()


def _read_early(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(READ_LATE)}


def _can_fork(words: Any) -> bool:
    return hasattr(os, "pidfd_open") and words[:1] in (("-m",), ("-c",))
