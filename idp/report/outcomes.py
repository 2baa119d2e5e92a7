"""Outcomes of single documents, read from the Parquet files beside the records and aligned for paired comparisons."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from idp.report.measured import Measured, Score

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Outcomes:
    """Of one model on one task: `doc_ids` [documents], ascending, and its main metric on each, `scores` [documents]."""

    doc_ids: np.ndarray
    scores: np.ndarray


def outcomes(score: Score | None) -> Outcomes | None:
    """The outcome of each document behind a score.

    None where there is no score, the Parquet file is gone or cannot be read, or the main metric is not one of single
    documents.
    """
    if score is None or score.samples is None:
        return None
    return _file(score.samples).get((score.row, score.task, score.metric))


def paired(models: Iterable[Measured], task: str) -> list[np.ndarray] | None:
    """The scores of several models on the same documents of a task, each [documents], in one order.

    None where one of them has no outcomes, or they are of different settings or documents: those are never compared.
    """
    import numpy as np

    models = list(models)
    if len({model.setting for model in models}) > 1:
        return None
    found: list[Outcomes] = []
    for model in models:
        each = outcomes(model.tasks.get(task))
        if each is None or (found and not np.array_equal(found[0].doc_ids, each.doc_ids)):
            return None
        found.append(each)
    return [each.scores for each in found]


@functools.cache
def _file(path: Path) -> dict[tuple[str, str, str], Outcomes]:
    """Every model's outcomes on every task, by (row, task, metric): a few bytes a document, texts are not read."""
    import numpy as np
    from pyarrow import ArrowException, parquet

    try:
        names = parquet.read_schema(path).names
        metrics = [name for name in names if name.startswith("metric:")]
        names = ["model", "asked_for"]
        table = parquet.read_table(path, columns=[*names, "doc_id", *metrics], read_dictionary=names, use_threads=False)
    except (OSError, ValueError, ArrowException):
        return {}
    parts = {}
    for name in ("model", "asked_for"):
        column = table[name].combine_chunks()
        parts[name] = column.dictionary.to_pylist(), column.indices.to_numpy(zero_copy_only=False)
    doc_ids = table["doc_id"].to_numpy()
    values = {name: table[name].to_numpy().astype(np.float32) for name in metrics}
    found = {}
    (models, model), (tasks, task) = parts["model"], parts["asked_for"]
    for m, model_name in enumerate(models):
        for t, task_name in enumerate(tasks):
            rows = np.flatnonzero((model == m) & (task == t))
            order = rows[np.argsort(doc_ids[rows], kind="stable")]
            for name, column in values.items():
                scores = column[order]
                if len(scores) and not np.isnan(scores).any():
                    key = model_name, task_name, name.removeprefix("metric:")
                    found[key] = Outcomes(doc_ids[order], scores)
    return found
