"""A few training steps of each recovery as `budget=paper` takes them: the card's peak, and the seconds of a step."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

from tests.gpu.bench import Bench
from tests.gpu.lines import FAILED, OK, Line, gib
from tests.gpu.steps import Step

TARGET = {"llama_7b": 20 * 2**30, "llama3_8b": 20 * 2**30}  # bytes, what docs/large_models.md promises
STEPS = 3
RECOVERIES = {
    "prompt": ["recovery=prompt", "recovery.training.objective=lm"],
    "lora": ["recovery=lora", "recovery.training.objective=lm"],
    "distilled prompt": ["recovery=prompt", "recovery.training.objective=distill"],
}


def parts(_: Bench) -> list[str]:
    return list(RECOVERIES)


def run(part: str, bench: Bench) -> Iterator[Line]:
    from idp.corpora.corpus import named_corpus
    from idp.memory import device_peaks, peak_bytes
    from idp.recover.stage import recover
    from idp.store import Store

    folder, store = bench.saved_model(bench.shape), Store(bench.folder / "store")
    config = bench.composed(*recipe(part, bench, STEPS), *bench.corpus())
    compressed, dense = (bench.product(folder, store, role) for role in ("compressed", "dense"))
    text = named_corpus("corpus", config.corpus, None)
    times: list[float] = []

    def report(row: dict[str, float]) -> None:
        if any(name.endswith("gradient_norm") for name in row):  # a training step, not a held-out evaluation
            times.append(time.perf_counter())

    recover(config.recovery, bench.config(folder), compressed, text, 0, store, report, dense=dense)
    peak = device_peaks().get("cuda:0", 0) if bench.cuda else peak_bytes()
    step = min(after - before for before, after in itertools.pairwise(times))
    rows, tokens = bench.size.batch
    figure = f"{f'peak {gib(peak)}, ' if bench.cuda else ''}{step:.3g} s a step of {rows} x {tokens}"
    values = {"peak_bytes": peak, "step_seconds": step}
    target = TARGET.get(bench.shape)
    if bench.cuda and target is not None and peak > target:
        yield Line(part, figure, FAILED, f"over {gib(target)}", values)
    else:
        yield Line(part, figure, OK, "", values)


def recipe(part: str, bench: Bench, steps: int) -> list[str]:
    """The overrides of one recovery with the papers' batch and length of a prompt, and so few steps."""
    rows, tokens = bench.size.batch
    training = {
        "steps": steps,
        "batch_size": rows,
        "sequence_length": tokens,
        "warmup_steps": 0,
        "evaluate_every": steps,
        "heldout_sequences": rows,
        "checkpoint_every": steps,
        "checkpointing": "true",  # what a card of 24 GB comes to by itself; a larger one would not need it
        "teacher": "streamed",
    }
    length = [f"recovery.length={bench.size.prompt}"] if "recovery=prompt" in RECOVERIES[part] else []
    return RECOVERIES[part] + length + [f"recovery.training.{name}={value}" for name, value in training.items()]


IMPORTS = ("transformers.models.llama.modeling_llama", "peft", "idp.recover.stage", "idp.recover.nets.head_loss")
STEP = Step("training", 85, parts, run, IMPORTS)
