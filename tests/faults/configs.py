"""Mutated configs: each ends in one line before any model is in memory, or runs."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import random
import shutil
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.runs import Bench, Ended, Fault, limit, track

log = logging.getLogger(__name__)

OPENED = "opened"  # a file that says that a model was brought into memory
SECONDS, GIGABYTES = 60, 6  # of the processor's time and of memory, for one run

# What is mutated: between them they use every part of the schema.
BASES = (
    ("compressor=gptq3", "recovery=idp"),
    ("compressor=rtn4", "recovery=prompt"),
    ("compressor=wanda50", "recovery=lora"),
    ("compressor=sparsegpt50", "recovery=lora_idp"),
    ("compressor=magnitude50", "recovery=ptune"),
    ("compressor=awq4", "recovery=prefix"),
    ("compressor=none", "recovery=hard_prompt", "latency=default"),
    ("compressor=rtn3", "recovery=idp", "recovery/bank=cluster", "recovery/selector=learned"),
    ("compressor=rtn3", "recovery=idp", "recovery/bank=specialists", "recovery/selector=random"),
    ("compressor=rtn3", "recovery=prompt", "recovery.training.objective=distill"),
)
SMALL = (
    "model=tiny_llama",
    "task=arc_easy",
    "budget=smoke",
    "corpus=local",
    "corpus.name=bridges",
    "baselines=false",
    "tracker=none",
)
FILES = {  # options that name a file or a folder, with the words without which they say nothing
    "model.path": ("model=local",),
    "compressor.path": ("compressor=external",),
    "recovery.from": ("recovery=transfer",),
    "recovery.bank.from": ("recovery=idp", "recovery/bank=assembled"),
    "recovery.init_from": ("recovery=prompt", "recovery.init=learned"),
    "corpus.path": (),
    "compressor.calibration.corpus": ("compressor=gptq3",),
    "evaluation.perplexity": (),
    "data_dir": (),
    "task.data_dir": (),
    "output": (),
    "store": (),
}
NUMBERS = ("0", "-1", "1000000000", "1" + "0" * 30, "nan", "inf", "-inf", "1e-300", "0.5")
TEXTS = ("''", "' '", "x" * 3000, "../../etc/passwd", "ü☃", "null", "-", "a=b")
LISTS = ("[]", "[1000000000]", "[-1]", "[0]", "[nan]", "['']", "[null]", "[1,1,1]")
OTHERS = ("word", "3", "1.5", "true", "null", "[1,2]", "{a: 1}", "'1e'", "[[1]]", "1,2", "???", "${nothing}")


@dataclass
class Figures:
    """How mutated configs ended, by what was done to them."""

    refused: Counter = field(default_factory=Counter)
    ran: Counter = field(default_factory=Counter)
    stopped: Counter = field(default_factory=Counter)  # still running when their time was up

    def rows(self) -> list[list[object]]:
        """For a table."""
        columns = self.refused, self.ran, self.stopped
        rows = [[kind, *(counts[kind] for counts in columns)] for kind in KINDS]
        return [*rows, ["**all**", *(sum(counts.values()) for counts in columns)]]


def check(folder: Path, count: int, seed: int) -> Figures:
    """Runs `count` mutated configs, the kinds of mutation taking turns.

    Raises:
        Fault: one said more or less than one line, or said it with a model in memory.
    """
    bench, figures, faults = Bench(folder, SMALL), Figures(), []
    for number in track(range(count), "mutated configs"):
        kind = list(KINDS)[number % len(KINDS)]
        words = KINDS[kind](random.Random(f"{seed} {number}"), _broken_files(folder / "broken"))
        try:
            verdict = _judge(_run(bench, words), bench)
        except Fault as fault:
            faults.append(f"{' '.join(words)}\n    {fault}")
        else:
            getattr(figures, verdict)[kind] += 1
            log.info("%s, %s: %s", kind, verdict, " ".join(words)[:200])
    if faults:
        raise Fault(f"{len(faults)} of {count}:\n" + "\n".join(faults))
    return figures


def _run(bench: Bench, words: list[str]) -> Ended:
    bench.clear()
    opened = bench.folder / OPENED
    opened.unlink(missing_ok=True)
    inside = bench.folder / "a" / "b" / "c"  # where a relative path does no harm
    inside.mkdir(parents=True, exist_ok=True)

    def prepare() -> None:
        from idp import models

        os.chdir(inside)
        limit(SECONDS, GIGABYTES)
        real = models.open_model

        @functools.wraps(real)
        def noted(*args: Any, **kwargs: Any) -> Any:
            opened.touch()
            return real(*args, **kwargs)

        models.open_model = noted

    return bench.start(*words, prepare=prepare).wait()


def _judge(ended: Ended, bench: Bench) -> str:
    """The name of the figure that a run counts for."""
    if ended.status == -signal.SIGXCPU:
        return "stopped"
    if ended.status == 0:
        if "record: " not in ended.out:
            raise Fault(f"no record, and no error: {ended.out}")
        return "ran"
    if ended.one_error is None:
        raise Fault(f"exit status {ended.status}, not one line: {ended.errors[-1500:]}")
    if (bench.folder / OPENED).exists():
        raise Fault(f"said with a model in memory: {ended.one_error}")
    return "refused"


def _unknown(draw: random.Random, broken: list[str]) -> list[str]:
    """An option that there is not: misspelt, added, or a choice that does not exist."""
    base = draw.choice(BASES)
    name, value = draw.choice(_leaves(base))
    way = draw.randrange(4)
    if way == 0:
        place = draw.randrange(len(name))
        name = name[:place] + draw.choice("xq_.") + name[place + 1 :]
        return [*base, f"{name}={json.dumps(value)}"]
    if way == 1:
        return [*base, f"+{name.rpartition('.')[0] or 'model'}.{draw.choice(('extra', 'bits', 'lr'))}=1"]
    if way == 2:
        group = draw.choice(("model", "compressor", "recovery", "task", "corpus", "budget", "latency", "recovery/bank"))
        return [*base, f"{group}={draw.choice(('nothing', 'gptq5', 'IDP', '', '../model/tiny_llama'))}"]
    return [*base, f"{draw.choice(('~', '+', ''))}{draw.choice(('recovery', 'modle', 'hydra/nothing', 'seeds'))}=3"]


def _wrong_type(draw: random.Random, broken: list[str]) -> list[str]:
    base = draw.choice(BASES)
    leaves = _leaves(base)
    sections = sorted({name.rpartition(".")[0] for name, _ in leaves} - {""})
    name = draw.choice(sections) if draw.random() < 0.1 else draw.choice(leaves)[0]
    return [*base, f"{name}={draw.choice(OTHERS)}"]


def _absurd(draw: random.Random, broken: list[str]) -> list[str]:
    base = draw.choice(BASES)
    name, value = draw.choice(_leaves(base))
    values = LISTS if isinstance(value, list) else TEXTS if isinstance(value, str) else NUMBERS
    return [*base, f"{name}={draw.choice(values)}"]


def _missing(draw: random.Random, broken: list[str]) -> list[str]:
    name, words = draw.choice(list(FILES.items()))
    base = draw.choice(BASES[:3])
    place = draw.choice(broken)
    value = f"[{place}]" if name in ("recovery.bank.from", "evaluation.perplexity") else place
    return [*base, *words, f"{name}={value}"]


KINDS = {"unknown key": _unknown, "wrong type": _wrong_type, "absurd value": _absurd, "missing file": _missing}


@functools.cache
def _leaves(base: tuple[str, ...]) -> list[tuple[str, Any]]:
    """The options of a config with their values, by their names."""
    from idp.checks import check
    from idp.composed import Composer
    from idp.registry import register

    def walk(node: Any, prefix: str) -> list[tuple[str, Any]]:
        found = []
        for item in dataclasses.fields(node):
            value, name = getattr(node, item.name), f"{prefix}{item.name}"
            found += walk(value, f"{name}.") if dataclasses.is_dataclass(value) else [(name, value)]
        return found

    register()
    return walk(check(Composer().compose(["model=tiny_llama", *base])), "")


def _broken_files(folder: Path) -> list[str]:
    """Places where a file or folder is wanted and is not, or is not what it should be."""
    shutil.rmtree(folder, ignore_errors=True)
    contents = {
        "empty.txt": b"",
        "noise.txt": bytes(range(128, 256)) * 8,
        "noise.gguf": bytes(range(256)) * 8,
        "cut.gguf": b"GGUF\x03\x00\x00\x00",
        "cut.jsonl.gz": b"\x1f\x8b\x08\x00",
        "list.jsonl": b"[1, 2]\n",
        "cut.parquet": b"PAR1",
        "record.json": b'{"idp": {}}',
        "model/config.json": b"{}",
        "half/config.json": b'{"model_type": "llama"}',
        "half/model.safetensors": bytes(20),
    }
    for name, content in contents.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (folder / "nothing").mkdir()
    (folder / "dangling").symlink_to(folder / "gone")
    places = ["/dev/null", "nobody/nothing", str(folder / "gone" / "deeper")]
    return [*places, *(str(path) for path in sorted(folder.iterdir()))]
