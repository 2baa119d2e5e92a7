"""Runs of the tiny model in processes of their own, forked from one that has imported all that a run needs.

A process so made is what `python -m idp.run` is, but for the seconds of imports: it goes through the same `main` with
the same words, has its own exit status and can be killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idp.progress import progress
from idp.records.record import RECORD, SAMPLES, comparable
from idp.status import STATUS
from idp.store import MANIFEST
from tests.preloaded import preload

# Every stage makes a product, training has several checkpoints, and tasks are of several batches.
WORDS = (
    "model=tiny_llama",
    "compressor=gptq3",
    "recovery=idp",
    "recovery.lengths=[3,5]",
    "recovery/selector=learned",
    "recovery.training.checkpoint_every=2",
    "task=custom",
    "task.names=[arc_easy,written]",
    "budget=smoke",
    "evaluation.batch_tokens=512",
    "corpus=local",
    "corpus.name=bridges",
    "baselines=false",
    "tracker=none",
)
# A task whose answers are written, but not over hundreds of tokens, as random models write to the last that they may.
WRITTEN = """
task: written
dataset_path: json
dataset_kwargs: {data_files: {test: written.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
STAGES = ("find", "load", "compress", "recover", "select", "measure", "track")


class Fault(AssertionError):
    """A promise that was not kept."""


@dataclass
class Ended:
    """A process that has ended: its exit status, negative where a signal ended it, and what it said."""

    status: int
    out: str
    errors: str

    @property
    def one_error(self) -> str | None:
        """The error, where the last line is the only one that says one and there is no traceback."""
        lines = self.errors.strip().splitlines()
        said = [line for line in lines if line.startswith("error: ")]
        alone = self.status == 1 and len(said) == 1 and lines[-1] == said[0]
        return said[0] if alone and "Traceback" not in self.out + self.errors else None


class Process:
    """A run in a process of its own.

    Args:
        words: as on the command line.
        said: the folder that its output goes to.
        prepare: called in the new process before the run.
    """

    def __init__(self, words: Sequence[str], said: Path, prepare: Callable[[], None] | None = None):
        said.mkdir(parents=True, exist_ok=True)
        self.out, self.errors, self.ended = said / "out", said / "errors", None
        self.pid = os.fork()
        if self.pid == 0:
            self._be(words, prepare)

    def _be(self, words: Sequence[str], prepare: Callable[[], None] | None) -> None:
        """The child: what the interpreter does for `python -m idp.run`, and never returns."""
        status = 70
        try:
            for number, file in ((1, self.out), (2, self.errors)):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
            sys.argv = ["idp", *words]
            if prepare is not None:
                prepare()
            from idp.run import main

            main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def poll(self) -> Ended | None:
        """How it ended, or None while it runs."""
        return self.ended or self._reap(os.WNOHANG)

    def wait(self) -> Ended:
        return self.ended or self._reap(0)

    def kill(self) -> Ended:
        """SIGKILL, whatever it is doing."""
        if self.ended is None:
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def _reap(self, options: int) -> Ended | None:
        pid, status = os.waitpid(self.pid, options)
        if pid:
            texts = [file.read_text(errors="replace") if file.exists() else "" for file in (self.out, self.errors)]
            self.ended = Ended(os.waitstatus_to_exitcode(status), *texts)
        return self.ended


@dataclass
class Result:
    """What a run left: its record without timings, its documents' outcomes, and the files of each product."""

    record: dict[str, Any]
    samples: list[dict[str, Any]]
    products: dict[str, dict[str, str]]


class Bench:
    """A folder in which one config is run again and again, always at the same place, so that records compare whole.

    Args:
        folder: for the output, the text that is read, and what the processes say.
        words: the run's own.
    """

    def __init__(self, folder: Path, words: Sequence[str] = WORDS):
        self.folder, self.output, self.said = folder, folder / "outputs", folder / "said"
        self.text = write_text(folder / "text.txt")
        tasks = f"task.include_path={write_task(folder / 'tasks')}"
        self.words = [*words, f"corpus.path={self.text}", tasks, f"output={self.output}"]

    @property
    def store(self) -> Path:
        return self.output / "store"

    def clear(self) -> None:
        """Nothing has been run."""
        shutil.rmtree(self.output, ignore_errors=True)

    def start(self, *words: str, prepare: Callable[[], None] | None = None) -> Process:
        return Process([*self.words, *words], self.said, prepare)

    def run(self, *words: str) -> Ended:
        """A run to its end.

        Raises:
            Fault: it failed.
        """
        ended = self.start(*words).wait()
        if ended.status:
            raise Fault(f"exit status {ended.status}: {ended.errors[-2000:]}")
        return ended

    def stage(self) -> str | None:
        """The stage that the status shows; None before there is one."""
        for status in self.output.glob(f"runs/*/{STATUS}"):
            return json.loads(status.read_text())["stage"].split(":")[0]
        return None

    def made(self) -> dict[str, int]:
        """When each finished product was made, by its place in the store."""
        return {
            str(manifest.parent.relative_to(self.store)): manifest.stat().st_mtime_ns
            for manifest in self.store.glob(f"*/*/{MANIFEST}")
            if "." not in manifest.parent.name
        }

    def result(self) -> Result:
        """What the last run left."""
        from pyarrow import parquet

        (run,) = self.output.glob(f"runs/*/{RECORD}")
        products = {}
        for place in self.made():
            products[place] = json.loads((self.store / place / MANIFEST).read_text())["files"]
        samples = parquet.read_table(run.parent / SAMPLES).to_pylist()
        return Result(comparable(json.loads(run.read_text())), samples, products)

    def leftovers(self) -> list[str]:
        """What does not belong in a store at rest: products half made or set aside, temporary files."""
        odd = [path for path in self.store.glob("*/*") if path.is_dir() and "." in path.name]
        odd += [path for path in self.output.rglob("*.tmp") if path.is_file()]
        return sorted(str(path.relative_to(self.output)) for path in odd)


def same(one: Result, other: Result) -> None:
    """Holds two results against each other, timings aside; products byte by byte, by their hashes.

    Raises:
        Fault: what differs.
    """
    for name in ("record", "samples", "products"):
        if (place := difference(getattr(one, name), getattr(other, name), name)) is not None:
            raise Fault(f"not the undisturbed run's: {place}")


def difference(one: Any, other: Any, name: str) -> str | None:
    """Where two JSON values first differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        if odd := one.keys() ^ other.keys():
            return f"{name}: {sorted(odd)[0]}"
        return next(filter(None, (difference(one[key], other[key], f"{name}.{key}") for key in one)), None)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next(filter(None, (difference(*pair, f"{name}[{number}]") for number, pair in pairs)), None)
    return None if one == other else f"{name}: {one!r} and {other!r}"


def write_text(file: Path) -> Path:
    """A corpus of drawn words, read much sooner than the embedded one."""
    words = ["the", "bridge", "river", "repairs", "old", "new", "stone", "over", "builds", "two", "seven", "and"]
    draw = random.Random(0)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n\n".join(" ".join(draw.choices(words, k=60)) for _ in range(300)))
    return file


def write_task(folder: Path) -> Path:
    """The task of `WRITTEN`, with its documents beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "written.yaml").write_text(WRITTEN)
    rows = [{"question": f"What comes after {number}?", "answer": str(number + 1)} for number in range(8)]
    (folder / "written.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def import_all() -> None:
    """Imports into this process what a run imports, as `tests/preloaded.py` lists it."""
    os.environ |= preload()


def limit(seconds: int, gigabytes: int) -> None:
    """Bounds what this process may use from now on: of the processor's time (SIGXCPU ends it), and of memory."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (gigabytes << 30),) * 2)


def wait_until(condition: Callable[[], bool], process: Process) -> bool:
    """Waits for it as long as the process runs; whether it came true."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.001)
    return False


def track(cases: Sequence[Any], label: str) -> Iterator[Any]:
    """The cases one by one, with their progress on standard error."""
    with progress(len(cases), label, unit="cases") as bar:
        for case in cases:
            yield case
            bar.update(1)
