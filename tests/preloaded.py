"""A process that has imported all that a run needs and computed nothing; each command is a fork of it.

`tests/processes.py` starts it and sends it commands. A fork is what the interpreter is when it starts on the command,
but for the seconds of imports: it has the command's words, folder and variables, runs the module anew as `__main__`,
and ends as interpreters end.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import tempfile
import types
from typing import Any

LONGEST = 1 << 20  # bytes of a command
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


def preload() -> dict[str, str]:
    """Imports what runs import, and lists lm-eval's tasks, which takes a second. Leaves the environment as it was.

    Returns:
        the variables that imports set.
    """
    before = dict(os.environ)
    from idp.command import quiet_libraries

    quiet_libraries()
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")  # as idp.compress.terminal sets it before the import
    for name in LIBRARIES:
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


def serve(control: socket.socket) -> dict[str, Any]:
    """Forks for each command that comes; returns it in the fork. Ends the process when nobody can send any more."""
    running: dict[int, tuple[int, int]] = {}  # a descriptor that can be read at its end: process, where to say so
    while True:
        ready, _, _ = select.select([control, *running], [], [])
        for ended in set(ready) & running.keys():
            pid, told = running.pop(ended)
            _, status = os.waitpid(pid, 0)
            with contextlib.suppress(OSError):  # nobody waits for it
                os.write(told, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(told)
            os.close(ended)
        if control not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, LONGEST, 3)
        if not message:
            for pid, _ in running.values():
                os.kill(pid, signal.SIGKILL)
            for folder in FOLDERS:
                folder.cleanup()
            os._exit(0)
        out, errors, told = descriptors
        if (pid := os.fork()) == 0:
            os.dup2(out, 1)
            os.dup2(errors, 2)
            for descriptor in (*descriptors, *running, *(other for _, other in running.values())):
                os.close(descriptor)
            return json.loads(message)
        os.close(out)
        os.close(errors)
        running[os.pidfd_open(pid)] = pid, told
        control.send(str(pid).encode())


def become(command: dict[str, Any]) -> None:
    """What the interpreter does when it is started as `python -m module words` or `python -c code words`."""
    import numpy

    numpy.random.seed()  # else every fork would draw the same
    for folder in FOLDERS:  # each has its own, as the first to end removes it
        folder._finalizer.detach()
        folder.__init__()
    os.environ.clear()
    os.environ.update(command["environment"])
    os.chdir(command["folder"])
    kind, what, *sys.argv[1:] = command["words"]
    sys.argv[0] = kind
    if kind == "-c":
        sys.path.insert(0, "")
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), vars(main))
        return
    sys.path.insert(0, os.getcwd())
    if not hasattr(sys.modules.get(what), "__path__"):  # the one that runs is `__main__`
        sys.modules.pop(what, None)
    runpy.run_module(what, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        channel.send(json.dumps(preload()).encode())
        gc.freeze()
        told = serve(channel)
    become(told)
