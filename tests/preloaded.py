"""A process that has imported all that a run needs and computed nothing; each command is a fork of it.

`python preloaded.py FOLDER` serves all workers of the tests, for as long as one of them is connected to FOLDER/socket.
`tests/processes.py` starts it and sends it commands; FOLDER/python sends it those that other programs start, such as
SLURM. A fork is what the interpreter is when it starts on the command, but for the seconds of imports: it has the
command's words, folder, variables and open files, runs the module anew as `__main__`, and ends as interpreters end.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST = 1 << 20  # bytes of a command
MOST_FILES = 64
FOLDERS: list[tempfile.TemporaryDirectory] = []  # that imports make, such as W&B's for media

# What runs of the tiny models import as they go, found by what a fork had imported at its end.
LIBRARIES = (
    "accelerate",
    "compressed_tensors.linear",
    "datasets",
    "filelock._lease",
    "hydra._internal.hydra",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher",
    "hydra_plugins.idp_joblib",
    "hydra_plugins.idp_slurm",
    "llmcompressor",
    "llmcompressor.modeling.moe.gpt_oss",
    "lm_eval.evaluator",
    "lm_eval.tasks",
    "peft",
    "pyarrow.parquet",
    "sacrebleu",
    "sklearn.linear_model",
    "torch",
    "transformers.models.gpt_oss.modeling_gpt_oss",
    "transformers.models.llama.modeling_llama",
    "transformers.models.opt.modeling_opt",
    "wandb",
)
# Modules that start Python by `sys.executable`: in a fork they start FOLDER/python, and so another fork.
STARTERS = ("joblib.externals.loky.backend.popen_loky_posix", "submitit.local.local", "submitit.slurm.slurm")

# FOLDER/python: forks as the interpreter would start, is there until the fork ends, and passes signals on to it.
STAND_IN = """#!{python} -SE
import array, json, os, signal, socket, sys
words = sys.argv[1:]
options = [word for word in words[: next((n for n, word in enumerate(words) if word in ("-m", "-c")), 0)]]
words = words[len(options) :]
if words[:1] not in (["-m"], ["-c"]) or "resource_tracker" in words[1]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
channel.connect({place!r})
numbers = {{int(name) for name in os.listdir("/proc/self/fd")}} - {{0, 1, 2, channel.fileno()}}
numbers = [0, 1, 2, *(number for number in numbers if os.path.exists("/proc/self/fd/%d" % number))]
command = dict(words=words, environment=dict(os.environ), folder=os.getcwd(), numbers=numbers)
command |= dict(unbuffered="-u" in options, pid=os.getpid())
message = json.dumps(command).encode()
channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * len(message) + 4096)
passed_on = [getattr(signal, name) for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2")]
signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)  # they wait until it is known whom they are for
channel.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))])
for number in numbers[3:]:
    os.close(number)
pid = int(channel.recv(16))
for each in passed_on:
    signal.signal(each, lambda number, frame: os.kill(pid, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
status = int(channel.recv(16))
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)
os._exit(status)
"""


def preload() -> dict[str, str]:
    """Imports what runs import, and lists lm-eval's tasks, which takes a second. Leaves the environment as it was.

    Returns:
        the variables that imports set.
    """
    before = dict(os.environ)
    from idp.command import quiet_libraries

    quiet_libraries()
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")  # as idp.compress.terminal sets it before the import
    for name in (*LIBRARIES, *STARTERS):
        with contextlib.suppress(ImportError):  # another version keeps it elsewhere
            importlib.import_module(name)
    import idp

    for module in pkgutil.walk_packages(idp.__path__, "idp."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    from idp.tasks import catalog

    catalog.scan()
    FOLDERS.extend(each for each in gc.get_objects() if type(each) is tempfile.TemporaryDirectory)
    found = {name: value for name, value in os.environ.items() if before.get(name) != value}
    os.environ.clear()
    os.environ.update(before)
    return found


@dataclass
class Running:
    """A fork: its process, and the descriptor that can be read at its end; both None where a worker only holds on."""

    pid: int | None = None
    ended: int | None = None


def serve(listening: socket.socket) -> dict[str, Any]:
    """Forks for each command that comes; returns it in the fork. Ends the process when nobody is connected any more.

    Who sends a command stays connected until he has its exit status; if he goes before that, the fork is killed.
    """
    channels: dict[socket.socket, Running] = {}
    begun = False
    while channels or not begun:
        forks = {each.ended: channel for channel, each in channels.items() if each.ended is not None}
        ready, _, _ = select.select([listening, *channels, *forks], [], [])
        for ended in ready:
            if (channel := forks.get(ended)) is not None:
                status = _reap(channels.pop(channel))
                with contextlib.suppress(OSError), channel:  # nobody waits for it
                    channel.send(str(status).encode())
        for channel in ready:
            if channel is listening:
                channels[listening.accept()[0]] = Running()
                begun = True
            elif channel in channels:
                command = _received(channel)
                if command is None:
                    running = channels.pop(channel)
                    channel.close()
                    if running.pid is not None:
                        os.kill(running.pid, signal.SIGKILL)
                        _reap(running)
                elif (pid := os.fork()) == 0:
                    for each in (listening, *channels):
                        each.close()
                    for each in channels.values():
                        if each.ended is not None:
                            os.close(each.ended)
                    return command
                else:
                    for number in command["files"]:
                        os.close(number)
                    channels[channel] = Running(pid, os.pidfd_open(pid))
                    channel.send(str(pid).encode())
    for folder in FOLDERS:
        folder.cleanup()
    folder = Path(listening.getsockname()).parent
    shutil.rmtree(folder, ignore_errors=True)
    if [file.name for file in folder.parent.iterdir()] == ["lock"]:  # the last of the tests' preloaded processes
        shutil.rmtree(folder.parent, ignore_errors=True)
    os._exit(0)


def _received(channel: socket.socket) -> dict[str, Any] | None:
    """A command, with the descriptors of its files here; None where its sender has gone."""
    files = array.array("i")
    try:
        message, ancillary, _, _ = channel.recvmsg(LONGEST, socket.CMSG_SPACE(MOST_FILES * files.itemsize))
    except OSError:
        return None
    for _, _, data in ancillary:
        files.frombytes(data[: len(data) - len(data) % files.itemsize])
    return {**json.loads(message), "files": list(files)} if message else None


def _reap(running: Running) -> int:
    _, status = os.waitpid(running.pid, 0)
    os.close(running.ended)
    return os.waitstatus_to_exitcode(status)


def become(command: dict[str, Any], folder: Path) -> None:
    """What the interpreter does when it is started as `python -m module words` or `python -c code words`."""
    _take(command["files"], command["numbers"])
    import numpy
    import torch

    numpy.random.seed()  # else every fork would draw the same
    for each in FOLDERS:  # each has its own, as the first to end removes it
        each._finalizer.detach()
        each.__init__()
    before = os.environ.get("PYTHONPATH")
    os.environ.clear()
    os.environ.update(command["environment"])
    if (paths := os.environ.get("PYTHONPATH")) != before:  # read as the interpreter starts
        old, new = (value.split(os.pathsep) if value else [] for value in (before, paths))
        sys.path[:] = [*new, *(path for path in sys.path if path not in old)]
    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():  # read as torch is imported
        torch.set_num_threads(int(threads))
    os.chdir(command["folder"])
    if command.get("unbuffered"):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)
    _start_forks(str(folder / "python"))
    _pause(json.loads(os.environ.get("PYTEST_PAUSES", "{}")))
    kind, what, *sys.argv[1:] = command["words"]
    sys.argv[0] = kind
    if kind == "-c":
        sys.path.insert(0, "")
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), vars(main))
        return
    if what == "submitit.local._local":  # it knows its job by the number of the process that was started
        os.getpid = lambda: command["pid"]
    sys.path.insert(0, os.getcwd())
    if not hasattr(sys.modules.get(what), "__path__"):  # the one that runs is `__main__`
        sys.modules.pop(what, None)
    runpy.run_module(what, run_name="__main__", alter_sys=True)


def _take(files: list[int], numbers: list[int]) -> None:
    """Gives open files the numbers that they have for whoever sent them."""
    high = [os.dup2(file, 500 + place) for place, file in enumerate(files)]
    for file in files:
        os.close(file)
    for file, number in zip(high, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)


def _start_forks(python: str) -> None:
    """From now on this process starts others of its kind as forks too, and all Python where that is asked for."""
    import multiprocessing

    if os.environ.get("PYTEST_FORKS"):
        sys.executable = python

    multiprocessing.set_executable(python)
    for name in STARTERS:
        if name in sys.modules:
            sys.modules[name].sys = _Sys(python)


def _pause(pauses: dict[str, Any]) -> None:
    """Makes a run long without work: so many seconds after each `step` of training and each scored `batch`.

    Training waits after its first step for the file `until`, where one is named.
    """
    if pauses.get("step"):
        from torch.optim.optimizer import register_optimizer_step_post_hook

        def wait(*_: Any) -> None:
            time.sleep(pauses["step"])
            while "until" in pauses and not os.path.exists(pauses["until"]):
                time.sleep(0.05)

        register_optimizer_step_post_hook(wait)
    if pauses.get("batch"):
        from idp.evaluate.engine import LocalEngine

        score = LocalEngine.score_batch

        def score_and_wait(*arguments: Any, **named: Any) -> Any:
            found = score(*arguments, **named)
            time.sleep(pauses["batch"])
            return found

        LocalEngine.score_batch = score_and_wait


class _Sys(types.ModuleType):
    """`sys` with another executable."""

    def __init__(self, executable: str):
        super().__init__("sys")
        self.executable = executable

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)


def main(folder: Path) -> None:
    found = preload()
    place, stand_in = folder / "socket", folder / "python"
    stand_in.write_text(STAND_IN.format(python=sys.executable, place=str(place)))
    stand_in.chmod(0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(place))
        listening.listen(64)
        (folder / "set_by_imports.json").write_text(json.dumps(found))
        (folder / "ready").touch()
        gc.collect()
        gc.freeze()
        command = serve(listening)
    become(command, folder)


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder
    main(Path(sys.argv[1]))
