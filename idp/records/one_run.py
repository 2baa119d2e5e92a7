"""One run's outcomes of documents, whichever program measured it: what `idp compare` holds against another run's."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from idp.errors import UserError
from idp.records.outcomes import documents_of
from idp.records.reading import read
from idp.records.record import RECORD, SAMPLES
from idp.records.schema import Record
from idp.records.scores import rows_of

IDP, LM_EVAL = "idp", "lm-eval"


class NoOutcomes(Exception):
    """Why the documents of one task cannot be had: a reason in words."""


@dataclass(frozen=True)
class Documents:
    """What one model scored on each document of a task, by the document's number in the split."""

    hashes: Mapping[int, str]  # of the document as the data set has it; empty where the run does not say
    asked: Mapping[int, str]  # hash of all that the model was given of it; empty where the run does not say
    metrics: Mapping[str, Mapping[int, float]]  # by lm-eval's key, such as `acc,none`


@dataclass(frozen=True)
class TaskRun:
    """What a run says of a task."""

    name: str  # what ran
    version: Any  # lm-eval's, of the definition
    shots: int | None  # examples before each question
    results: Mapping[str, Any]  # lm-eval's figures
    higher_is_better: Mapping[str, bool | None]  # by metric without its filter
    generation: Any = None  # how answers are generated, as the definition says
    stands_for: str | None = None  # the task that was asked for, where this one stands in


@dataclass(frozen=True)
class OneRun:
    """One model that one run measured."""

    name: str  # what the tables call it
    place: str  # the file, as far as the user's own words lead there
    by: str  # IDP or LM_EVAL
    tasks: Mapping[str, TaskRun]  # without groups
    groups: Mapping[str, list[str]]  # each with its tasks, those of groups within it too
    group_results: Mapping[str, Mapping[str, Any]]  # what the run itself reports of a group
    read: Callable[[str], Documents]  # of a task; raises NoOutcomes
    conditions: Mapping[str, Any] = field(default_factory=dict)  # of all tasks alike, as far as the run says
    notes: list[str] = field(default_factory=list)


def of_record(place: Path, label: str, row: str | None = None) -> OneRun:
    """A run of this package, from its `record.json` and the Parquet file beside it.

    Args:
        place: the record, or its folder.
        label: how the user named it, for messages.
        row: dense, compressed or repaired; None: the run's own model.

    Raises:
        UserError: there is no record, or the run did not measure that row.
    """
    record, file = read(place, label)
    about, results = record["idp"], rows_of(record)
    row = row or about["row"]
    if row not in results:
        raise UserError(f"{label}: this run measured {', '.join(results)}, and no {row} model")
    asked = {data["stand_in"] or task: task for task, data in about["data"].items()}
    model, compressor = record["config"]["model"], about["compressor"]
    made = {"dense": ["dense"], "compressed": [compressor]}.get(row, [compressor, about["config"]["recovery"]["kind"]])
    return OneRun(
        name=f"{model} {' + '.join(made)}",
        place=f"{place if place.is_file() else place / RECORD}",
        by=IDP,
        tasks={runs: _of_record(record, runs, task, results[row]) for runs, task in asked.items()},
        groups={
            name: [about["data"][task]["stand_in"] or task for task in rows[row]["tasks"] if task in about["data"]]
            for name, rows in (about.get("groups") or {}).items()
            if row in rows
        },
        group_results={},
        read=lambda runs: _documents_of_record(file.parent / SAMPLES, row, asked[runs], label),
        notes=[
            f"{task}: its data set was unavailable, and {runs} was run instead (not comparable with {task})"
            for runs, task in asked.items()
            if runs != task
        ],
    )


def number(value: Any) -> float | None:
    """A metric of one document as a number; None where it is none, such as the parts of a perplexity."""
    if isinstance(value, str):  # what JSON cannot say, lm-eval writes as text: numpy's truth values and small floats
        value = {"True": 1.0, "False": 0.0}.get(value, value)
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def fingerprint(texts: Iterable[str]) -> str:
    """The hash of all texts of one document that a model was given, one for each choice."""
    known = hashlib.sha256()
    for text in texts:
        known.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return known.hexdigest()


def _of_record(record: Record, runs: str, task: str, results: Mapping[str, Any]) -> TaskRun:
    return TaskRun(
        name=runs,
        version=record.get("versions", {}).get(runs),
        shots=record.get("n-shot", {}).get(runs),
        results=results[runs],
        higher_is_better=record.get("higher_is_better", {}).get(runs, {}),
        generation=record.get("configs", {}).get(runs, {}).get("generation_kwargs"),
        stands_for=task if task != runs else None,
    )


def _documents_of_record(samples: Path, row: str, task: str, label: str) -> Documents:
    if not samples.is_file():
        raise NoOutcomes(f"{label}: {samples.name} beside its record is gone")
    documents = documents_of(samples, row, task)
    if not documents:
        raise NoOutcomes(f"{label}: {samples.name} beside its record has no documents of it, or cannot be read")
    metrics: dict[str, dict[int, float]] = {}
    for document in documents:
        for key, value in document.items():
            if key.startswith("metric:") and (found := number(value)) is not None:
                metrics.setdefault(key.removeprefix("metric:"), {})[document["doc_id"]] = found
    return Documents(
        {each["doc_id"]: each["doc_hash"] for each in documents if each.get("doc_hash")},
        {
            each["doc_id"]: fingerprint([each["context"] + choice for choice in each.get("choices") or [""]])
            for each in documents
            if each.get("context") is not None
        },
        metrics,
    )
