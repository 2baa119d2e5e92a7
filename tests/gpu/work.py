"""A step's parts in this process, each one's lines as they come; `python -m tests.gpu.work` does it for the parent."""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.gpu import bench as shared
from tests.gpu.bench import Bench
from tests.gpu.lines import failure
from tests.gpu.steps import Step, find

Say = Callable[[dict[str, Any]], None]


class DeviceLost(Exception):
    """After an error the card does not answer this process any more; another process may use it."""


def work(step: Step, parts: Sequence[str], bench: Bench, say: Say) -> None:
    """Looks at the parts one after the other, and says `begin`, each `line` and `end` of every one.

    Raises:
        DeviceLost: those that are left want another process.
    """
    for part in parts:
        say({"begin": part})
        started = time.perf_counter()
        try:
            for line in step.run(part, bench):
                taken = time.perf_counter() - started
                say({"line": {"step": step.name, **line.as_json(), "seconds": round(taken, 2)}})
                started = time.perf_counter()
        except Exception as error:
            taken = time.perf_counter() - started
            line = failure(part, error)
            print(f"{step.name} {part}: {line.reason}", file=sys.stderr)
            say({"line": {"step": step.name, **line.as_json(), "seconds": round(taken, 2)}})
            shared.once.cache_clear()  # what it made may be half made, or fill the memory
        try:
            _tidy(bench)
        finally:
            say({"end": part})


def _tidy(bench: Bench) -> None:
    """Gives back what a part has left, and asks the card whether it is still there."""
    gc.collect()
    if bench.cuda:
        import torch

        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except (RuntimeError, AssertionError) as error:  # the second where torch is built without CUDA
            raise DeviceLost(str(error)) from error


def main() -> None:
    """Imports, waits for the parts on standard input, and writes a JSON line for each thing said."""
    name, device, shape, folder = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer

    def say(what: dict[str, Any]) -> None:
        print(json.dumps(what), file=answers, flush=True)

    step = find(name)
    for module in step.imports:
        importlib.import_module(module)
    say({"ready": name})
    asked = sys.stdin.readline()
    if not asked:  # the parent has gone
        return
    try:
        work(step, json.loads(asked), Bench(device, shape, Path(folder)), say)
    except DeviceLost as error:
        print(f"the device is lost: {error}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # an interpreter that takes a lost device down with it hangs


if __name__ == "__main__":
    main()
