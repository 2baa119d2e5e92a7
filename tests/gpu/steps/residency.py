"""A model that was measured leaves the card: the second one finds as much of it free as the first."""

from __future__ import annotations

import functools
import json
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tests.gpu.bench import Bench, once, text
from tests.gpu.lines import FAILED, OK, SLOW, Line, gib
from tests.gpu.steps import Step

AGAIN = 1.02  # the second peak may be so much of the first
LEFT = 256 * 2**20  # bytes that libraries keep for themselves, such as cuBLAS's workspace
DOCUMENTS = 8


def parts(_: Bench) -> list[str]:
    return ["made", "measured twice"]


def run(part: str, bench: Bench) -> Iterator[Line]:
    yield _made(bench) if part == "made" else _twice(bench)


def _made(bench: Bench) -> Line:
    """The model as a folder, from which all that follows opens it."""
    started = time.perf_counter()
    folder = bench.saved_model(bench.shape)
    taken = time.perf_counter() - started
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return Line(f"{bench.shape} made and written", f"{gib(size)} in {taken:.1f} s", values={"bytes": size})


def _twice(bench: Bench) -> Line:
    """Opens the model and measures it as a run measures its rows, twice over, as `dense` and as `compressed`."""
    from idp import models
    from idp.evaluate.benchmark import Benchmark, Subject
    from idp.evaluate.room import batch_tokens
    from idp.evaluate.stage import measure
    from idp.recover import opening
    from idp.recover.none import NoRecovery
    from idp.store import Store
    from idp.tasks.tasks import find_tasks

    folder, store = bench.saved_model(bench.shape), Store(bench.folder / "store")
    config = bench.config(folder)
    composed = bench.composed("task=arc_easy", f"task.data_dir={_questions(bench)}", *bench.corpus())
    tasks = find_tasks(composed.task)
    tokens = batch_tokens(config, composed.evaluation, models.open_empty(folder, config))
    evaluation = replace(composed.evaluation, batch_tokens=tokens)
    weights = _weights(folder)
    peaks, left, seconds = [], [], []
    for name in ("first", "second"):
        product = bench.product(folder, store, name)
        open_model = functools.partial(opening.open_repaired, config, product, None, NoRecovery(kind="none"))
        _forget(bench)
        started = time.perf_counter()
        measure(
            Subject(name, product.key, models.model_folder(product)),
            Benchmark(config, evaluation, tasks, DOCUMENTS, {}),
            open_model,
            store,
        )
        bench.synchronise()
        seconds.append(time.perf_counter() - started)
        peaks.append(_peak(bench))
        left.append(_held(bench))
    once.cache_clear()
    values = {"weights_bytes": weights, "peak_bytes": peaks, "left_bytes": left, "seconds": seconds}
    figure = (
        f"peaks {' and '.join(map(gib, peaks))} with weights of {gib(weights)}; {' and '.join(map(gib, left))} left"
    )
    figure += f"; {' and '.join(f'{each:.0f}' for each in seconds)} s"
    name = "opened and measured twice"
    if not bench.cuda:
        figure = f"{' and '.join(f'{each:.1f}' for each in seconds)} s; no card's memory to look at"
        return Line(name, figure, values=values)
    if max(left) > LEFT:
        return Line(name, figure, FAILED, "a model that was measured is still on the card", values)
    if peaks[1] > AGAIN * peaks[0]:
        return Line(name, figure, FAILED, "the second peak is higher than the first", values)
    if peaks[0] > 1.5 * weights:
        return Line(name, figure, SLOW, "the peak is more than half as much again as the weights", values)
    return Line(name, figure, OK, "", values)


def _questions(bench: Bench) -> Any:
    """A `data_dir` with questions of ARC-Easy's form."""
    folder = bench.folder / "data" / "arc_easy"
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(2)
    with open(folder / "test.jsonl", "w", encoding="utf-8") as file:
        for number in range(DOCUMENTS):
            choices = {"text": [text(draw, 12) for _ in "ABCD"], "label": list("ABCD")}
            row = {"id": str(number), "question": text(draw, 80), "choices": choices, "answerKey": draw.choice("ABCD")}
            file.write(json.dumps(row) + "\n")
    return folder.parent


def _weights(folder: Any) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _forget(bench: Bench) -> None:
    from idp.memory import release, start_peak

    release()
    start_peak()
    bench.synchronise()


def _peak(bench: Bench) -> int:
    from idp.memory import device_peaks, peak_bytes

    return device_peaks().get("cuda:0", 0) if bench.cuda else peak_bytes()


def _held(bench: Bench) -> int:
    """Bytes of tensors on the card that something still refers to, once circles of references are collected."""
    from idp.memory import release

    release()
    if not bench.cuda:
        return 0
    import torch

    return torch.cuda.memory_allocated(0)


IMPORTS = ("transformers.models.llama.modeling_llama", "lm_eval.tasks", "idp.evaluate.scorer", "idp.recover.opening")
STEP = Step("residency", 80, parts, run, IMPORTS)
