"""`python(...)`: a command line in a process of its own, forked from one that has the imports behind it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

PRELOADED = Path(__file__).with_name("preloaded.py")
# Variables that are read when they are used, or that a fork can heed late; at import only Hugging Face's cache is
# looked for in HOME. A process whose other variables differ has imports of its own.
READ_LATE = (
    "CUDA_VISIBLE_DEVICES",
    "HOME",
    "IDP_",
    "OMP_NUM_THREADS",
    "PATH",
    "PWD",
    "PYTEST_",
    "PYTHONPATH",
    "SLURM_",
    "SUBMITIT_",
    "WANDB_",
)


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
        message = json.dumps({**command, "numbers": [1, 2]}).encode()
        self._channel = _connected(_preloaded(environment))
        self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * len(message) + 4096)
        socket.send_fds(self._channel, [message], [file.fileno() for file in self._files])
        self.pid = int(self._told())

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
            if not select.select([self._channel], [], [], timeout)[0]:
                if timeout:
                    self.kill()
                raise subprocess.TimeoutExpired("python", timeout, self.out, self.errors)
            self.returncode = int(self._told())
            self._channel.close()
        return self.returncode

    def _told(self) -> bytes:
        if not (answer := self._channel.recv(16)):
            raise RuntimeError("the process that it is forked from has died")
        return answer

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


def stand_in() -> Path:
    """A program to start in place of `sys.executable`, which forks; where processes cannot be watched, that itself."""
    return _preloaded(os.environ) / "python" if hasattr(os, "pidfd_open") else Path(sys.executable)


def _preloaded(environment: Mapping[str, str]) -> Path:
    """The folder of a process of `tests/preloaded.py` whose imports read the same of the environment.

    All workers of the tests share them: each is started by whoever needs it first, and ends with the last of them.
    """
    early = _read_early(environment)
    for folder in _held:
        if _suits(folder, early):
            return folder
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))[:12]
    root = Path(tempfile.gettempdir()) / f"idp-preloaded-{session}"
    root.mkdir(exist_ok=True)
    with FileLock(root / "lock"):
        for ready in sorted(root.glob("*/ready")):
            if _suits(ready.parent, early) and _hold(ready.parent):
                return ready.parent
        folder = Path(tempfile.mkdtemp(dir=root))
        (folder / "read_early.json").write_text(json.dumps(early))
        late = {name: environment[name] for name in ("HOME", "PATH", "PYTHONPATH") if name in environment}
        process = subprocess.Popen(
            [sys.executable, str(PRELOADED), str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=early | late,
            start_new_session=True,  # Ctrl-C is for us, and ends it by ending us
        )
        while not (folder / "ready").exists():
            if process.poll() is not None:
                raise RuntimeError(f"{PRELOADED.name} ended with exit status {process.returncode}")
            time.sleep(0.05)
        _hold(folder)
    return folder


_held: dict[Path, socket.socket] = {}


def _hold(folder: Path) -> bool:
    """Stays connected to a preloaded process, so that it stays; whether it is there."""
    try:
        _held[folder] = _connected(folder)
    except OSError:
        return False
    return True


def _connected(folder: Path) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        channel.connect(str(folder / "socket"))
    except OSError:
        channel.close()
        raise
    return channel


def _suits(folder: Path, wanted: Mapping[str, str]) -> bool:
    """Whether imports would find the same; what they set themselves, those of this process may have set as well."""
    try:
        early, set_by_imports = (
            json.loads((folder / f"{name}.json").read_text()) for name in ("read_early", "set_by_imports")
        )
    except OSError:  # it has ended
        return False
    odd = dict(early.items() ^ wanted.items())
    return all(name not in early and wanted.get(name) == set_by_imports.get(name) for name in odd)


def _read_early(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(READ_LATE)}


def _can_fork(words: Any) -> bool:
    return hasattr(os, "pidfd_open") and words[:1] in (("-m",), ("-c",))
