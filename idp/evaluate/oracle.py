"""Selectors that use the labels, such as the oracle: each document's best prompt. An upper bound, no method.

Its rows are those of the prompts measured alone; no model runs.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import models
from idp.errors import UserError
from idp.evaluate.benchmark import (
    PERPLEXITY_VERSION,
    VERSION,
    Benchmark,
    Subject,
    conditions,
    corpus_config,
    mended,
    task_config,
)
from idp.evaluate.measured import Measured
from idp.evaluate.selection import outcomes
from idp.evaluate.written import write_corpus, write_task
from idp.store import Identity

if TYPE_CHECKING:
    from idp import config as schema
    from idp.store import Product, Store
    from idp.tasks.tasks import TaskSource

RESAMPLES = 1000  # of standard errors without a closed form, as `run_task` has them


def measure(
    subject: Subject,
    benchmark: Benchmark,
    per_prompt: Sequence[Measured[Product]],
    selector: schema.Selector,
    store: Store,
) -> Measured[Product]:
    """The products of a selector that uses the labels, under the keys that a selector's own would have.

    Args:
        subject: the repaired model.
        benchmark: what each prompt was measured on.
        per_prompt: what each prompt scored by itself, in order.
        selector: its options, part of each product's key; its `best_by_labels` chooses.
        store: where products live.

    Raises:
        UserError: a task whose main metric is not one of single documents.
    """
    expected = identities(subject, benchmark, per_prompt, selector)
    measured: Measured[Product] = Measured(subject.name)
    names = [each.name for each in per_prompt]
    for source in benchmark.tasks:
        products = [each.tasks[source.name] for each in per_prompt]
        make = functools.partial(_task, source, products, names, selector)
        measured.tasks[source.name] = store.obtain(expected.tasks[source.name], make)
    for corpus in benchmark.corpora:
        products = [each.corpora[corpus] for each in per_prompt]
        make = functools.partial(_corpus, products, selector)
        measured.corpora[corpus] = store.obtain(expected.corpora[corpus], make)
    return measured


def identities(
    subject: Subject, benchmark: Benchmark, per_prompt: Sequence[Measured[Any]], selector: schema.Selector
) -> Measured[Identity]:
    """What those products are; of `per_prompt`, products or identities will do."""
    bos = models.bos_of(subject.folder, benchmark.model)
    common = conditions(selector.identity, benchmark.model, benchmark.evaluation, bos)
    found: Measured[Identity] = Measured(subject.name)
    for source in benchmark.tasks:
        config = task_config(source, benchmark.documents) | common | mended(per_prompt[0].tasks[source.name].config)
        label = f"{subject.name} {source.runs} ({selector.kind})"
        found.tasks[source.name] = Identity("measure", subject.key, config, VERSION, label)
    for corpus, text in benchmark.corpora.items():
        config = corpus_config(text, benchmark.evaluation) | common
        label = f"{subject.name} perplexity of {corpus} ({selector.kind})"
        found.corpora[corpus] = Identity("measure", subject.key, config, PERPLEXITY_VERSION, label)
    return found


def _task(
    source: TaskSource, products: Sequence[Product], prompts: list[str], selector: schema.Selector, folder: Path
) -> None:
    """Each document's row behind the prompt that was chosen for it, and their aggregates."""
    from pyarrow import parquet

    found = outcomes(products[0], products, source.runs)
    if found is None:
        raise UserError(
            f"recovery.selector={selector.kind}: the main metric of task {source.runs} is not one of single documents;"
            " leave the task out of task.names"
        )
    _, higher, _, scores, _ = found
    chosen = [int(prompt) for prompt in selector.best_by_labels(scores if higher else -scores)]
    tables = [parquet.read_table(product.path / "samples.parquet").to_pylist() for product in products]
    rows = [tables[prompt][place] | {"prompt": prompt} for place, prompt in enumerate(chosen)]
    results = products[0].read("results.json")
    results["results"][source.runs] = _aggregated(source, results["results"][source.runs], rows)
    counts = Counter(chosen)
    results["idp"] = {
        "selection": {name: counts[number] for number, name in enumerate(prompts)},
        "truncated": results["idp"]["truncated"],
        "merged_choices": results["idp"].get("merged_choices", 0),
        "partly_merged_choices": results["idp"].get("partly_merged_choices", 0),
        "tokens_run": 0,
    }
    write_task(folder, results, rows)


def _aggregated(source: TaskSource, results: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One task's results over other rows, by lm-eval's own aggregation; metrics that no row has drop out."""
    import logging

    from lm_eval.api.metrics import stderr_for_metric

    from idp.tasks.rows import quiet

    aggregation, kept = source.build([0]).aggregation(), {}
    for key, value in results.items():
        if "," not in key:
            kept[key] = value
    for key in (key for key in results if "," in key and "_stderr," not in key):
        metric, _, rest = key.partition(",")
        values = [row[f"metric:{key}"] for row in rows if row.get(f"metric:{key}") is not None]
        if len(values) < len(rows) or metric not in aggregation:
            continue
        kept[key] = float(aggregation[metric](values))
        with quiet(logging.WARNING):
            error = stderr_for_metric(aggregation[metric], RESAMPLES)
            found = float(error(values)) if error is not None and len(values) > 1 else math.nan
        kept[f"{metric}_stderr,{rest}"] = "N/A" if math.isnan(found) else found
    return kept


def _corpus(products: Sequence[Product], selector: schema.Selector, folder: Path) -> None:
    """Each window's loss behind the prompt that was chosen for it: the oracle's is the least."""
    import numpy as np

    windows = np.array([product.read("windows.json") for product in products]).T  # [windows, prompts]
    losses = [float(row[prompt]) for row, prompt in zip(windows, selector.best_by_labels(-windows), strict=True)]
    write_corpus(folder, losses, products[0].read("perplexity.json")["window"])
