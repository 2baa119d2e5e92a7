"""What a run measures its models on, and what each score is as a product of the store, before it is measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import config as schema
from idp import models
from idp.evaluate import fidelity
from idp.evaluate.measured import Fidelity, Measured
from idp.models import greedy
from idp.prompting.attention import fused
from idp.store import Identity, Product, Store

if TYPE_CHECKING:
    from idp.corpora.corpus import Text
    from idp.tasks.tasks import TaskSource

VERSION = 1
PERPLEXITY_VERSION = 2  # 2: the windows' own losses
RESULTS, SAMPLES = "results.json", "samples.parquet"
ENDS, MERGED_CHOICES = MENDED = "ends", "merged_choices"


@dataclass(frozen=True)
class Benchmark:
    """What every model of a run is measured on, and how.

    Args:
        model: the model's config: its dtype and device decide the numbers.
        evaluation: tokens per batch, and how perplexity is measured.
        tasks: what `find_tasks` found.
        documents: per task; None: all.
        corpora: by name, those whose perplexity is measured.
    """

    model: schema.Model
    evaluation: schema.Evaluation
    tasks: Sequence[TaskSource]
    documents: int | None
    corpora: dict[str, Text]


@dataclass(frozen=True)
class Subject:
    """One model that is measured.

    Args:
        name: dense, compressed or repaired, or that of a prompt.
        key: of the compressed model or of the repair.
        folder: of the model's config and tokenizer.
        selector: what decides the choice where a bank of several prompts is measured: part of each product's key.
        reference: whether what it predicts is kept, as the dense model's that others are held against.
        title: what is said of it beside the progress bar; None: its name.
    """

    name: str
    key: str
    folder: Path
    selector: dict[str, Any] | None = None
    reference: bool = False
    title: str | None = None


def identities(
    subject: Subject, benchmark: Benchmark, store: Store | None, dense: Measured[Any] | None = None
) -> Measured[Identity]:
    """What each score of a model is, in the place of the product that it will be.

    Args:
        subject: the model.
        benchmark: what it is measured on.
        store: where what was computed otherwise once is looked up; None: nowhere.
        dense: products or identities of the dense model's scores, where this one is held against it.
    """
    common = common_of(subject, benchmark)
    found: Measured[Identity] = Measured(subject.name)
    for source in benchmark.tasks:
        found.tasks[source.name] = _of_task(subject, benchmark, source, common, store)
    for corpus, text in benchmark.corpora.items():
        config = corpus_config(text, benchmark.evaluation) | common
        label = f"{subject.name} perplexity of {corpus}"
        found.corpora[corpus] = Identity("measure", subject.key, config, PERPLEXITY_VERSION, label)
    if compares(subject, dense):
        comparing = fidelity.Side(subject.name, subject.key, common, dense)
        found.fidelity = Fidelity(
            {name: comparing.of_task(name, identity.key) for name, identity in found.tasks.items()},
            {
                corpus: comparing.of_corpus(corpus, corpus_config(text, benchmark.evaluation))
                for corpus, text in benchmark.corpora.items()
            },
        )
    return found


def compares(subject: Subject, dense: Measured[Any] | None) -> bool:
    """Whether a model's predictions are kept, or held against the dense model's."""
    return subject.reference or (dense is not None and dense.fidelity is not None)


def composable(source: TaskSource) -> bool:
    """Whether each document of a task stands behind one prompt, so that what a choice scores is there where each prompt
    was measured: whole texts are scored in windows, each behind a prompt of its own."""
    return not source.scores_whole_texts


def common_of(subject: Subject, benchmark: Benchmark) -> dict[str, Any]:
    """The part of every key of a model's scores."""
    bos = models.bos_of(subject.folder, benchmark.model)
    common = conditions(subject.selector, benchmark.model, benchmark.evaluation, bos)
    return common | _revised(subject.folder, subject.selector)


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


def task_config(source: TaskSource, documents: int | None) -> dict[str, Any]:
    """What decides a task's scores beside the model, as part of their key."""
    return {"task": source.runs, "data": source.fingerprint, "documents": source.wanted(documents)}


def corpus_config(text: Text, evaluation: schema.Evaluation) -> dict[str, Any]:
    """What decides a corpus's perplexity beside the model, as part of its key."""
    return {
        "corpus": text.fingerprint,
        "tokens": evaluation.perplexity_tokens,
        "window": evaluation.perplexity_window,
    }


def mended(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a task's key that is there only where its scores were once computed otherwise."""
    return {name: config[name] for name in MENDED if name in config}


def _of_task(
    subject: Subject, benchmark: Benchmark, source: TaskSource, common: dict[str, Any], store: Store | None
) -> Identity:
    trust = benchmark.model.trust_remote_code
    ends = greedy.ends_beside_eos(subject.folder, trust) if source.generates else []
    config = task_config(source, benchmark.documents) | common | ({ENDS: ends} if ends else {})
    found = Identity("measure", subject.key, config, VERSION, f"{subject.name} {source.runs}")
    old = store.finished(found) if store is not None else None
    if old is not None and _gave_a_choice_nothing(old):
        return Identity("measure", subject.key, config | {MERGED_CHOICES: "apart"}, VERSION, found.label)
    return found


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


def _gave_a_choice_nothing(product: Product) -> bool:
    """Whether a product from before merged choices were encoded apart has a choice of exactly 0 nats: one that had no
    tokens, or, rarely, one that the model was quite sure of."""
    from pyarrow import parquet

    if MERGED_CHOICES in product.read(RESULTS)["idp"]:
        return False
    values = parquet.read_table(product.path / SAMPLES, columns=["loglikelihoods"]).column(0).to_pylist()
    return any(value == 0.0 for row in values for value in row or [])
