"""Outcomes of single documents, read from the Parquet files beside the records and aligned for paired comparisons."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.records.measured import ModelScores, Score

if TYPE_CHECKING:
    import numpy as np

JUDGED_BY = {"acc": None, "acc_norm": len, "acc_bytes": lambda choice: len(choice.encode())}  # lm-eval's lengths
AGREE = 0.99  # of hits with the likeliest choice; the rest may be ties, which rounding breaks either way


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


def graded(score: Score | None) -> Outcomes | None:
    """The graded outcome of each document behind a score: the probability of the right choice.

    None where there is no score, the Parquet file is gone, or as of `graded_outcomes`.
    """
    hits = outcomes(score)
    if score is None or hits is None or score.samples is None:
        return None
    found = graded_outcomes(score.samples, score.row, score.task, score.metric)
    return None if found is None else Outcomes(hits.doc_ids, found)


def graded_outcomes(samples: Path, row: str, task: str, metric: str) -> np.ndarray | None:
    """The probability that a model gives the right choice of each document, [documents] by ascending number.

    A softmax over the log-likelihoods of a document's choices, judged as the metric judges them: where a hit is the
    largest likelihood by length (`acc_norm`: characters, `acc_bytes`: bytes), each is divided by its choice's length
    and multiplied by the mean length of the document's choices. So the most probable choice is the one that the metric
    takes, and choices of one length have their plain probabilities. Of a task with a single continuation, where a hit
    is that greedy decoding gives it, the continuation's probability.

    Hits see only which choice is first; this also sees by how much, so it varies less and tells models apart on fewer
    documents. It is another question all the same: a model may grow surer without a single answer more.

    Args:
        samples: the Parquet file of documents.
        row: dense, compressed or repaired.
        task: as asked for.
        metric: the main one, such as `acc_norm,none`.

    Returns:
        None where documents have no choices (generation), the metric is none of hits on choices, or the hits are not
        those of the largest of these likelihoods: then the right choice is not known here.
    """
    return _graded(samples, row, task, metric)


def paired(models: Iterable[ModelScores], task: str, of: Callable = outcomes) -> list[np.ndarray] | None:
    """The scores of several models on the same documents of a task, each [documents], in one order.

    None where one of them has no outcomes, or they are of different settings or documents: those are never compared.

    Args:
        models: see above.
        task: see above.
        of: what is read of a score: `outcomes`, or `graded`.
    """
    import numpy as np

    models = list(models)
    if len({model.setting for model in models}) > 1:
        return None
    found: list[Outcomes] = []
    for model in models:
        each = of(model.tasks.get(task))
        if each is None or (found and not np.array_equal(found[0].doc_ids, each.doc_ids)):
            return None
        found.append(each)
    return [each.scores for each in found]


def documents_of(samples: Path, row: str, task: str) -> list[dict[str, Any]]:
    """All that a run's Parquet file has of one model's documents of a task, likelihoods aside; empty where it cannot
    be read.

    Args:
        samples: the file.
        row: dense, compressed or repaired.
        task: as asked for.
    """
    from pyarrow import ArrowException, compute, parquet

    wanted = (compute.field("model") == row) & (compute.field("asked_for") == task)
    try:
        names = parquet.read_schema(samples).names
        columns = [name for name in names if name in ("doc_id", "doc_hash", "context", "choices")]
        columns += [name for name in names if name.startswith("metric:")]
        return parquet.read_table(samples, columns=columns, filters=wanted, use_threads=False).to_pylist()
    except (OSError, ValueError, ArrowException):
        return []


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


@functools.cache
def _graded(path: Path, row: str, task: str, metric: str) -> np.ndarray | None:
    from pyarrow import ArrowException, compute, parquet

    if metric.split(",")[0] not in JUDGED_BY:
        return None
    wanted = (compute.field("model") == row) & (compute.field("asked_for") == task)
    columns = ["doc_id", "choices", "loglikelihoods", "target", f"metric:{metric}"]
    try:
        columns += [name for name in parquet.read_schema(path).names if name == "greedy"]
        documents = parquet.read_table(path, columns=columns, filters=wanted).to_pylist()
    except (OSError, ValueError, ArrowException):
        return None
    return graded_documents(sorted(documents, key=lambda document: document["doc_id"]), metric)


def graded_documents(documents: Sequence[dict[str, Any]], metric: str) -> np.ndarray | None:
    """As `graded_outcomes`, of rows that have been read, in their order.

    Args:
        documents: each with `choices`, `loglikelihoods`, `greedy`, `target` and the metric, as in a run's samples.
        metric: the main one.
    """
    import numpy as np

    name = metric.split(",")[0]
    hits = [document[f"metric:{metric}"] for document in documents]
    if name not in JUDGED_BY or not documents or not set(hits) <= {0.0, 1.0}:
        return None
    lengths = JUDGED_BY[name]
    # Stored choices begin with what the task puts before them, mostly a blank, which lm-eval does not count.
    for cut in (" ", "") if lengths else ("",):
        judged = [each for document in documents if (each := _probability(document, lengths, cut)) is not None]
        if len(judged) < len(documents):
            return None
        if np.mean([hit in allowed for (_, allowed), hit in zip(judged, hits, strict=True)]) >= AGREE:
            return np.array([probability for probability, _ in judged])
    return None


def _probability(
    document: dict[str, Any], lengths: Callable[[str], int] | None, cut: str
) -> tuple[float, set[float]] | None:
    """The right choice's probability, and what a hit may be if the likeliest choice is taken (both for a tie)."""
    import numpy as np

    nats, choices = np.array(document["loglikelihoods"] or [], float), document["choices"] or []
    if len(choices) != len(nats) or not len(nats) or np.isnan(nats).any():
        return None
    if len(nats) == 1:
        greedy = document.get("greedy") or []
        return (float(np.exp(min(0.0, nats[0]))), {float(greedy[0])}) if len(greedy) == 1 else None
    right = np.isin(choices, _right(document["target"], choices))
    if not right.any():
        return None
    if lengths is not None:
        each = np.array([max(1, lengths(choice.removeprefix(cut))) for choice in choices])
        nats = nats / each * each.mean()
    largest = nats.max()
    if not np.isfinite(largest):  # all impossible: as good as a guess
        return float(right.mean()), {0.0, 1.0}
    shares = np.exp(nats - largest)
    first = np.isclose(nats, largest, rtol=1e-6, atol=1e-6)
    return float(shares[right].sum() / shares.sum()), {float(hit) for hit in right[first]}


def _right(target: str, choices: Sequence[str]) -> list[str]:
    """The right choices: one as it stands, or several as a JSON list."""
    if target in choices:
        return [target]
    with contextlib.suppress(ValueError, TypeError):
        several = json.loads(target)
        if isinstance(several, list):
            return [choice for choice in several if choice in choices]
    return []
