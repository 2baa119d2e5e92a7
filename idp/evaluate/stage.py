"""Stage 4: measures a model on tasks and on running text. Each task is a product of its own, kept as it finishes."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import config as schema
from idp import models
from idp.errors import out_of_memory_is_explained
from idp.evaluate import greedy
from idp.evaluate.fidelity import WINDOWS, Comparing, Fidelity
from idp.memory import release
from idp.prompting.attention import fused
from idp.store import CHECKPOINT, Product, Store, digest, peaks, write_json

if TYPE_CHECKING:
    import torch

    from idp.evaluate.scorer import Scorer
    from idp.evaluate.tasks import TaskSource
    from idp.prompting.repaired import RepairedModel

log = logging.getLogger(__name__)

VERSION = 1
PERPLEXITY_VERSION = 2  # 2: the windows' own losses
RESULTS, SAMPLES, PERPLEXITY, LATENCY = "results.json", "samples.parquet", "perplexity.json", "latency.json"
ENDS, MERGED_CHOICES = MENDED = "ends", "merged_choices"


@dataclass
class Measured:
    """What one model scored: a product per task and per corpus."""

    name: str  # dense, compressed or repaired
    tasks: dict[str, Product] = field(default_factory=dict)
    corpora: dict[str, Product] = field(default_factory=dict)
    fidelity: Fidelity | None = None  # what it predicts, of the dense model; of others how far they are from that

    @property
    def products(self) -> list[Product]:
        return [*self.tasks.values(), *self.corpora.values()]

    def summary(self) -> dict[str, Any]:
        """Key of the scores; reuse and seconds of the stage as a whole."""
        made = self._made
        return {
            "key": digest([product.key for product in self.products]),
            "reused": all(product.reused for product in made),
            "seconds": round(sum(product.seconds for product in made), 3),
        }

    def peaks(self) -> dict[str, Any]:
        """The most memory that making any of it took: `peak_memory_bytes` and, of accelerators, `device_peak_bytes`."""
        return peaks(self._made)

    @property
    def _made(self) -> list[Product]:
        return [*self.products, *(self.fidelity.products if self.fidelity is not None else [])]


def measure(
    name: str,
    open_model: Callable[[str | None], RepairedModel],
    folder: Path,
    parent: str,
    selector: dict[str, Any] | None,
    model: schema.Model,
    evaluation: schema.Evaluation,
    tasks: Sequence[TaskSource],
    documents: int | None,
    corpora: dict[str, Any],
    store: Store,
    finished: Callable[[str, str, Product], None] | None = None,
    keeps: bool = False,
    dense: Measured | None = None,
) -> Measured:
    """Scores a model on every task and corpus that the store does not have yet; the model is opened only if needed.

    Args:
        name: dense, compressed or repaired: what is said beside the progress bar.
        open_model: brings the model into memory, on the device named or, for None, on the config's.
        folder: of the model's config and tokenizer.
        parent: the key of the compressed model or of the repair.
        selector: what decides the choice where a bank of several prompts is measured: part of each product's key.
        model: the model's config: its dtype and device decide the numbers.
        evaluation: tokens per batch, and how perplexity is measured.
        tasks: what `find_tasks` found.
        documents: per task; None: all.
        corpora: `idp.corpus.Text` by name, for perplexity.
        store: where products live.
        finished: called with the model's name, the task or corpus, and its product.
        keeps: keep what it predicts, as the dense model that others are held against.
        dense: what was measured of that model, where this one is held against it.
    """
    scorer = _Lazy(lambda: _scorer(open_model, folder, model, evaluation, name))
    measured = Measured(name)
    common = conditions(selector, model, evaluation, models.bos_of(folder, model)) | _revised(folder, selector)
    compares = keeps or (dense is not None and dense.fidelity is not None)
    comparing = Comparing(name, parent, common, scorer, store, dense) if compares else None
    measured.fidelity = Fidelity() if compares else None
    with out_of_memory_is_explained("measure"), contextlib.closing(scorer):
        for source in tasks:
            make = functools.partial(
                store.get_or_make,
                "measure",
                parent=parent,
                version=VERSION,
                make=lambda folder, source=source: _measure_task(scorer(), source, documents, folder),
                label=f"{name} {source.runs}",
            )
            ends = greedy.ends_beside_eos(folder, model.trust_remote_code) if source.generates else []
            config = task_config(source, documents) | common | ({ENDS: ends} if ends else {})
            product = make(config=config)
            if product.reused and _gave_a_choice_nothing(product):
                product = make(config=config | {MERGED_CHOICES: "apart"})
            measured.tasks[source.name] = product
            if comparing is not None:
                measured.fidelity.tasks[source.name] = comparing.of_task(source.name, product)
            if finished is not None:
                finished(name, source.name, product)
        for corpus, text in corpora.items():
            config = corpus_config(text, evaluation)
            compared = None
            if comparing is not None:
                windows = functools.partial(_windows, text, evaluation)
                compared = measured.fidelity.corpora[corpus] = comparing.of_corpus(corpus, config, windows)
            product = store.get_or_make(
                "measure",
                parent=parent,
                config=config | common,
                version=PERPLEXITY_VERSION,
                make=lambda folder, text=text, compared=compared: (
                    _measure_corpus(scorer(), text, evaluation, folder)
                    if compared is None
                    else write_corpus(folder, compared.read(WINDOWS), evaluation.perplexity_window)
                ),
                label=f"{name} perplexity of {corpus}",
            )
            measured.corpora[corpus] = product
            if finished is not None:
                finished(name, corpus, product)
    return measured


def conditions(
    selector: dict[str, Any] | None,
    model: schema.Model,
    evaluation: schema.Evaluation,
    bos: tuple[int, ...] = (),
) -> dict[str, Any]:
    """What decides the numbers of every product of a model, as part of its key; `bos` is what its texts begin with."""
    known = {"selector": selector, **models.numerics(model), "batch_tokens": evaluation.batch_tokens}
    if fused.in_use(models.device_of(model), models.dtype_of(model)):
        known["attention"] = "fused"
    return known | ({"bos": list(bos)} if bos else {})


def _revised(folder: Path, selector: dict[str, Any] | None) -> dict[str, Any]:
    """What marks the numbers of models that were once computed otherwise, so that older products do not pass for them.

    Frequencies that change with the length were those of the batch's longest row; a choice by attention did not know
    of windows.
    """
    file = folder / "config.json"
    shape = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    shape = shape.get("text_config") or shape
    revised: dict[str, Any] = {}
    if "longrope" in json.dumps([shape.get("rope_parameters"), shape.get("rope_scaling")]):
        revised["frequencies"] = "of each row"
    if selector is not None and (shape.get("sliding_window") or shape.get("attention_chunk_size")):
        revised["windows"] = "heeded"
    return revised


def task_config(source: TaskSource, documents: int | None) -> dict[str, Any]:
    """What decides a task's scores beside the model, as part of their key."""
    return {"task": source.runs, "data": source.fingerprint, "documents": source.wanted(documents)}


def mended(product: Product) -> dict[str, Any]:
    """The part of a task's key that is there only where its scores were once computed otherwise."""
    return {name: product.manifest["config"][name] for name in MENDED if name in product.manifest["config"]}


def corpus_config(text: Any, evaluation: schema.Evaluation) -> dict[str, Any]:
    """What decides a corpus's perplexity beside the model, as part of its key."""
    return {
        "corpus": text.fingerprint,
        "tokens": evaluation.perplexity_tokens,
        "window": evaluation.perplexity_window,
    }


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

    machine = f"{platform.node()} {platform.processor() or platform.machine()}"
    cards = _cards(model)
    settings = asdict(options)
    if options.decode == schema.EAGER:  # as before there was another way
        del settings["decode"]

    def make(folder: Path) -> None:
        write_json(folder / LATENCY, measure_latency(open_variants(), options))

    with out_of_memory_is_explained("latency"):
        return store.get_or_make(
            "latency",
            parent=digest(parents),
            config={"options": settings, "machine": machine, **models.numerics(model)}
            | ({"bos": list(bos)} if bos else {})
            | ({"cards": cards} if cards else {}),
            version=VERSION,
            make=make,
        )


def _cards(model: schema.Model) -> list[str]:
    """The names of the GPUs that a model runs on; none on a CPU."""
    import torch

    from idp.evaluate.latency import card

    device = models.device_of(model)
    if device.type == "cuda" and model.device_map:  # which of them is decided as it is opened
        return [card(torch.device("cuda", number)) for number in range(torch.cuda.device_count())]
    return [name] if (name := card(device)) is not None else []


class _Lazy:
    """Makes a scorer when first asked, and ends its engine."""

    def __init__(self, make: Callable[[], Scorer]):
        self.make, self.made = make, None

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
    folder: Path,
    model: schema.Model,
    evaluation: schema.Evaluation,
    name: str,
) -> Scorer:
    from idp.evaluate.engine import LocalEngine
    from idp.evaluate.pool import PooledEngine
    from idp.evaluate.scorer import Scorer

    devices = models.devices(model, evaluation.processes)
    if len(devices) == 1:
        engine = LocalEngine(open_model(None))
    else:
        empty = models.open_empty(folder, model)
        engine = PooledEngine(open_model, devices, empty.model.config, empty.tokenizer)
    return Scorer(engine, evaluation.batch_tokens, name)


def _measure_task(scorer: Scorer, source: TaskSource, documents: int | None, folder: Path) -> None:
    from idp.evaluate.journal import Journal
    from idp.evaluate.tasks import run_task

    scorer.begin()
    scorer.label = f"{scorer.name} {source.runs}"
    scorer.journal = Journal(folder / CHECKPOINT)
    results, rows = run_task(scorer, source, documents)
    for place, row in enumerate(rows):  # lm-eval numbers a sample's documents from 0
        row["prompt"] = scorer.choices.get((source.runs, place))
    counts = Counter(row["prompt"] for row in rows if row["prompt"] is not None)
    results["idp"] = {
        "selection": {name: counts[number] for number, name in enumerate(scorer.engine.prompts)},
        "truncated": scorer.truncated,
        MERGED_CHOICES: scorer.merged,
        "partly_merged_choices": scorer.partly_merged,
        "tokens_run": scorer.tokens_run,
    }
    if scorer.merged:
        _say_merged(source.runs, scorer.merged)
    for row in rows:
        row |= {f"metric:{key}": value for key, value in row.pop("metrics").items()}
    write_task(folder, results, rows)


@functools.cache
def _say_merged(task: str, count: int) -> None:
    """Once, not once for each model: they share their tokenizer."""
    from idp.evaluate.scorer import MERGED

    log.warning("task %s: %d choices %s (idp.merged_choices in the record)", task, count, MERGED)


def _gave_a_choice_nothing(product: Product) -> bool:
    """Whether a product from before merged choices were encoded apart has a choice of exactly 0 nats: one that had no
    tokens, or, rarely, one that the model was quite sure of."""
    from pyarrow import parquet

    if MERGED_CHOICES in product.read(RESULTS)["idp"]:
        return False
    values = parquet.read_table(product.path / SAMPLES, columns=["loglikelihoods"]).column(0).to_pylist()
    return any(value == 0.0 for row in values for value in row or [])


def write_task(folder: Path, results: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Writes a task's product: lm-eval's results, and one row per document."""
    import pyarrow as arrow
    from pyarrow import parquet

    write_json(folder / RESULTS, results)
    parquet.write_table(arrow.Table.from_pylist(rows), folder / SAMPLES)


def _measure_corpus(scorer: Scorer, text: Any, evaluation: schema.Evaluation, folder: Path) -> None:
    from idp.evaluate.journal import Journal
    from idp.evaluate.perplexity import window_losses

    scorer.label = f"{scorer.name} perplexity of {text.name}"
    scorer.journal = Journal(folder / CHECKPOINT)
    write_corpus(folder, window_losses(scorer, _windows(text, evaluation, scorer)), evaluation.perplexity_window)


def _windows(text: Any, evaluation: schema.Evaluation, scorer: Scorer) -> torch.Tensor:
    """The windows of a corpus's perplexity, [windows, tokens]."""
    from idp.corpus import blocks

    window = evaluation.perplexity_window
    count = evaluation.perplexity_tokens // window if evaluation.perplexity_tokens else None
    return blocks(text, "perplexity", scorer.tokenizer, window, count, seed=0, at_most=True)


def write_corpus(folder: Path, losses: list[float], window: int) -> None:
    """Writes a corpus's product: its perplexity, and the loss of each window of `window` tokens."""
    from idp.evaluate.perplexity import summary

    write_json(folder / WINDOWS, losses)
    write_json(folder / PERPLEXITY, summary(losses, window))
