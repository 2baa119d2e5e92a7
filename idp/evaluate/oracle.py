"""Selectors that peek, such as the oracle: each document's best prompt, taken after the fact. A bound, no method.

Its rows are those of the prompts measured alone; no model runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.errors import UserError
from idp.evaluate.measured import Measured
from idp.evaluate.selection import outcomes
from idp.evaluate.stage import (
    PERPLEXITY_VERSION,
    VERSION,
    conditions,
    corpus_config,
    mended,
    task_config,
    write_corpus,
    write_task,
)

if TYPE_CHECKING:
    from idp import config as schema
    from idp.store import Product, Store
    from idp.tasks.tasks import TaskSource

RESAMPLES = 1000  # of standard errors without a closed form, as `run_task` has them


def measure(
    name: str,
    alone: Sequence[Measured],
    parent: str,
    selector: schema.Selector,
    model: schema.Model,
    evaluation: schema.Evaluation,
    tasks: Sequence[TaskSource],
    documents: int | None,
    corpora: dict[str, Any],
    store: Store,
    bos: tuple[int, ...] = (),
) -> Measured:
    """The products of a selector that peeks, under the keys that a selector's own would have.

    Args:
        name: dense, compressed or repaired: what is said beside a task.
        alone: what each prompt scored by itself, in order.
        parent: the key of the repair.
        selector: its options, part of each product's key; its `peek` chooses.
        model: the model's config.
        evaluation: tokens per batch, and how perplexity is measured.
        tasks: what `find_tasks` found.
        documents: per task; None: all.
        corpora: `idp.corpora.corpus.Text` by name.
        store: where products live.
        bos: what the model's texts begin with.

    Raises:
        UserError: a task whose main metric is not one of single documents.
    """
    common, measured = conditions(asdict(selector), model, evaluation, bos), Measured(name)
    for source in tasks:
        products = [each.tasks[source.name] for each in alone]
        measured.tasks[source.name] = store.get_or_make(
            "measure",
            parent=parent,
            config=task_config(source, documents) | common | mended(products[0]),
            version=VERSION,
            make=lambda folder, source=source, products=products: _task(
                source, products, [each.name for each in alone], selector, folder
            ),
            label=f"{name} {source.runs} ({selector.kind})",
        )
    for corpus, text in corpora.items():
        products = [each.corpora[corpus] for each in alone]
        measured.corpora[corpus] = store.get_or_make(
            "measure",
            parent=parent,
            config=corpus_config(text, evaluation) | common,
            version=PERPLEXITY_VERSION,
            make=lambda folder, products=products: _corpus(products, selector, folder),
            label=f"{name} perplexity of {corpus} ({selector.kind})",
        )
    return measured


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
    chosen = [int(prompt) for prompt in selector.peek(scores if higher else -scores)]
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
    losses = [float(row[prompt]) for row, prompt in zip(windows, selector.peek(-windows), strict=True)]
    write_corpus(folder, losses, products[0].read("perplexity.json")["window"])
