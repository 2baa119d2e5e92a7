"""A process that has imported all that a run needs and computed nothing; each command is a fork of it.

`tests/processes.py` starts it and sends it commands. A fork is what the interpreter is when it starts on the command,
but for the seconds of imports: it has the command's words, folder and variables, runs the module anew as `__main__`,
and ends as interpreters end.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import socket
import sys
import types
from typing import Any

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


def preload() -> None:
    """Imports what runs import. The environment is as it was at the start for whoever reads it at import."""
    before = dict(os.environ)
    from idp.command import quiet_libraries

    quiet_libraries()
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")  # as idp.compress.terminal sets it before the import
    for name in LIBRARIES:
        importlib.import_module(name)
    import idp

    for module in pkgutil.walk_packages(idp.__path__, "idp."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    os.environ.clear()
    os.environ.update(before)


def serve(control: socket.socket) -> dict[str, Any]:
    """Forks for each command that comes; returns it in the fork. Ends the process when nobody can send any more."""
    watched = selectors.DefaultSelector()
    watched.register(control, selectors.EVENT_READ)
    while True:
        for key, _ in watched.select():
            if key.fileobj is control:
                message, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 3)
                if not message:
                    for waiting in watched.get_map().values():
                        if waiting.data is not None:
                            os.kill(waiting.data[0], 9)
                    os._exit(0)
                out, errors, ended = descriptors
                if (pid := os.fork()) == 0:
                    os.dup2(out, 1)
                    os.dup2(errors, 2)
                    watched.close()
                    control.close()
                    for number in descriptors:
                        os.close(number)
                    return json.loads(message)
                control.send(str(pid).encode())
                os.close(out)
                os.close(errors)
                watched.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, ended))
            else:
                pid, ended = key.data
                _, status = os.waitpid(pid, 0)
                os.write(ended, str(os.waitstatus_to_exitcode(status)).encode())
                os.close(ended)
                watched.unregister(key.fileobj)
                os.close(key.fd)


def become(command: dict[str, Any]) -> None:
    """What the interpreter does when it is started as `python -m module words` or `python -c code words`."""
    import numpy

    numpy.random.seed()  # else every fork would draw the same
    os.environ.clear()
    os.environ.update(command["environment"])
    os.chdir(command["folder"])
    kind, what, *words = command["words"]
    if kind == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *words]
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), vars(main))
        return
    sys.path.insert(0, os.getcwd())
    sys.argv = ["-m", *words]
    package, _, name = what.rpartition(".")
    if sys.modules.pop(what, None) is not None and package:  # the one that runs is `__main__`
        vars(sys.modules[package]).pop(name, None)
    runpy.run_module(what, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        preload()
        gc.freeze()
        told = serve(channel)
    become(told)
