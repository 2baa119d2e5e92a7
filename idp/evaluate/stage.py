"""Stage 4: measures a model on tasks and on running text. Each task is a product of its own, kept as it finishes."""

from __future__ import annotations

import contextlib
import functools
import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import config as schema
from idp import models
from idp.errors import out_of_memory_is_explained
from idp.evaluate.benchmark import (
    Benchmark,
    Subject,
    common_of,
    compares,
    composable,
    corpus_config,
    identities,
)
from idp.evaluate.fidelity import WINDOWS, Comparing
from idp.evaluate.measured import Fidelity, Measured
from idp.evaluate.written import write_corpus, write_scored
from idp.memory import release
from idp.store import CHECKPOINT, Identity, Product, Store, digest, write_json

if TYPE_CHECKING:
    import torch

    from idp.corpora.corpus import Text
    from idp.evaluate.scorer import Scorer
    from idp.prompting.repaired import RepairedModel
    from idp.tasks.tasks import TaskSource

log = logging.getLogger(__name__)

LATENCY = "latency.json"
LATENCY_VERSION = 1

Finished = Callable[[str, str, Product], None]


def measure(
    subject: Subject,
    benchmark: Benchmark,
    open_model: Callable[[str | None], RepairedModel],
    store: Store,
    dense: Measured | None = None,
    finished: Finished | None = None,
    per_prompt: Sequence[Measured[Product]] = (),
) -> Measured:
    """Scores a model on every task and corpus that the store does not have yet; the model is opened only if needed.

    Args:
        subject: which model it is.
        benchmark: what it is measured on, and how.
        open_model: brings the model into memory, on the device named or, for None, on the config's.
        store: where products live.
        dense: what was measured of the dense model, where this one is held against it.
        finished: called with the model's name, the task or corpus, and its product.
        per_prompt: what each prompt of the model's bank scored by itself, in order, where one is chosen for each input:
            what can be is composed of that, and only the choice is computed.
    """
    scorer = _Lazy(lambda: _scorer(open_model, subject, benchmark))
    expected = identities(subject, benchmark, store, dense)
    measured: Measured[Product] = Measured(subject.name)
    comparing = None
    fidelity: Fidelity[Product] = Fidelity()
    if compares(subject, dense):
        common = common_of(subject, benchmark)
        comparing = Comparing(subject.name, subject.key, common, scorer, store, dense)
        measured.fidelity = fidelity
    with out_of_memory_is_explained("measure"), contextlib.closing(scorer):
        for source in benchmark.tasks:
            make = functools.partial(_measure_task, scorer, source, benchmark.documents)
            if per_prompt and composable(source):
                alone = [each.tasks[source.name] for each in per_prompt]
                make = functools.partial(_compose_task, scorer, source, benchmark.documents, alone)
            product = measured.tasks[source.name] = store.obtain(expected.tasks[source.name], make)
            if comparing is not None:
                fidelity.tasks[source.name] = comparing.of_task(source.name, product)
            if finished is not None:
                finished(subject.name, source.name, product)
        for corpus, text in benchmark.corpora.items():
            make = functools.partial(_measure_corpus, scorer, text, benchmark.evaluation)
            if per_prompt:
                alone = [each.corpora[corpus] for each in per_prompt]
                make = functools.partial(_compose_corpus, scorer, text, benchmark.evaluation, alone)
            if comparing is not None:
                windows = functools.partial(_windows, text, benchmark.evaluation)
                compared = comparing.of_corpus(corpus, corpus_config(text, benchmark.evaluation), windows)
                fidelity.corpora[corpus] = compared
                make = functools.partial(_take_corpus, compared, benchmark.evaluation)
            measured.corpora[corpus] = store.obtain(expected.corpora[corpus], make)
            if finished is not None:
                finished(subject.name, corpus, measured.corpora[corpus])
    return measured


def time_models(
    open_variants: Callable[[], dict[str, RepairedModel]],
    parents: list[str],
    options: schema.Latency,
    model: schema.Model,
    store: Store,
    bos: tuple[int, ...] = (),
) -> Product:
    """Latency of several models side by side, as a product of this machine: another one measures anew.

    Args:
        open_variants: opens all of them, by name.
        parents: keys of what they are made of.
        options: batch sizes, input lengths and rounds.
        model: the model's config.
        store: where products live.
        bos: what the model's texts begin with.
    """
    from idp.evaluate.latency import measure_latency

    def make(folder: Path) -> None:
        write_json(folder / LATENCY, measure_latency(open_variants(), options))

    with out_of_memory_is_explained("latency"):
        return store.obtain(latency_identity(parents, options, model, bos), make)


def latency_identity(
    parents: list[str], options: schema.Latency, model: schema.Model, bos: tuple[int, ...] = ()
) -> Identity:
    """What the latency product is; the arguments are those of `time_models`."""
    machine = f"{platform.node()} {platform.processor() or platform.machine()}"
    cards = _cards(model)
    settings = asdict(options)
    if options.decode == schema.EAGER:  # as before there was another way
        del settings["decode"]
    config: dict[str, Any] = {"options": settings, "machine": machine, **models.numerics(model)}
    if bos:
        config["bos"] = list(bos)
    if cards:
        config["cards"] = cards
    return Identity("latency", digest(parents), config, LATENCY_VERSION)


def _cards(model: schema.Model) -> list[str]:
    """The names of the GPUs that a model runs on; none on a CPU."""
    import torch

    from idp.evaluate.latency import card

    device = models.device_of(model)
    if device.type == "cuda" and model.device_map:  # which of them is decided as it is opened
        names = [card(torch.device("cuda", number)) for number in range(torch.cuda.device_count())]
        return [name for name in names if name is not None]
    return [name] if (name := card(device)) is not None else []


class _Lazy:
    """Makes a scorer when first asked, and ends its engine."""

    def __init__(self, make: Callable[[], Scorer]):
        self.make = make
        self.made: Scorer | None = None

    def __call__(self) -> Scorer:
        if self.made is None:
            self.made = self.make()
        return self.made

    def close(self) -> None:
        if self.made is not None:
            self.made.engine.close()
            self.made = None
            release()


def _scorer(
    open_model: Callable[[str | None], RepairedModel],
    subject: Subject,
    benchmark: Benchmark,
) -> Scorer:
    from idp.evaluate.engine import Engine, LocalEngine
    from idp.evaluate.pool import PooledEngine
    from idp.evaluate.scorer import Scorer

    model, evaluation = benchmark.model, benchmark.evaluation
    devices = models.devices(model, evaluation.processes)
    if len(devices) == 1:
        engine: Engine = LocalEngine(open_model(None))
    else:
        empty = models.open_empty(subject.folder, model)
        engine = PooledEngine(open_model, devices, empty.model.config, empty.tokenizer)
    assert evaluation.batch_tokens is not None  # resolved before anything is measured
    return Scorer(engine, evaluation.batch_tokens, subject.title or subject.name)


def _measure_task(opened: _Lazy, source: TaskSource, documents: int | None, folder: Path) -> None:
    from idp.evaluate.journal import Journal
    from idp.tasks.tasks import run_task

    scorer = opened()
    scorer.begin()
    scorer.label = f"{scorer.name} {source.runs}"
    scorer.journal = Journal(folder / CHECKPOINT)
    results, rows = run_task(scorer, source, documents)
    write_scored(folder, scorer, source, results, rows)


def _compose_task(
    opened: _Lazy, source: TaskSource, documents: int | None, alone: Sequence[Product], folder: Path
) -> None:
    from idp.evaluate.composition import compose_task

    compose_task(opened, source, documents, alone, folder)


def _measure_corpus(opened: _Lazy, text: Text, evaluation: schema.Evaluation, folder: Path) -> None:
    from idp.evaluate.journal import Journal
    from idp.evaluate.perplexity import window_losses

    scorer = opened()
    scorer.label = f"{scorer.name} perplexity of {text.name}"
    scorer.journal = Journal(folder / CHECKPOINT)
    write_corpus(folder, window_losses(scorer, _windows(text, evaluation, scorer)), evaluation.perplexity_window)


def _compose_corpus(
    opened: _Lazy, text: Text, evaluation: schema.Evaluation, alone: Sequence[Product], folder: Path
) -> None:
    from idp.evaluate.composition import compose_corpus

    cut = functools.partial(_windows, text, evaluation)
    compose_corpus(opened, cut, alone, evaluation.perplexity_window, folder)


def _take_corpus(compared: Product, evaluation: schema.Evaluation, folder: Path) -> None:
    """The perplexity of a corpus out of the pass that compared the model there."""
    write_corpus(folder, compared.read(WINDOWS), evaluation.perplexity_window)


def _windows(text: Text, evaluation: schema.Evaluation, scorer: Scorer) -> torch.Tensor:
    """The windows of a corpus's perplexity, [windows, tokens]."""
    from idp.corpora.corpus import blocks

    window = evaluation.perplexity_window
    count = evaluation.perplexity_tokens // window if evaluation.perplexity_tokens else None
    return blocks(text, "perplexity", scorer.tokenizer, window, count, seed=0, at_most=True)
