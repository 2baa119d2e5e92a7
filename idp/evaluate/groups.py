"""What the record says of groups of tasks, of each model's match with dense, and of closed against open book."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from idp.evaluate.comparisons import outcomes_of
from idp.records.scores import main_metric
from idp.stats.matching import matching
from idp.stats.open_book import open_book
from idp.stats.significance import comparison
from idp.tasks import suites

if TYPE_CHECKING:
    import numpy as np

    from idp.evaluate.measured import Measured
    from idp.store import Product
    from idp.tasks.tasks import TaskSource

STEPS = (("compressed", "dense"), ("repaired", "compressed"), ("repaired", "dense"))  # after, before
GUESSED = ("acc", "acc_norm")  # metrics of choices, of which a guess gets one in so many right


def of_run(
    config: Mapping[str, Any], measured: Mapping[str, Measured], sources: Sequence[TaskSource]
) -> dict[str, Any]:
    """The record's `groups`, `matching` and `open_book`.

    Args:
        config: the resolved `task` of the run's config.
        measured: what each model scored, by `dense`, `compressed`, `repaired`.
        sources: the tasks.

    Returns:
        JSON. `groups`: of each group and model `score`, the unweighted mean over its `tasks`; how it differs from
        `dense` and `compressed` (`difference`, as `idp.stats.significance.comparison` gives the mean), as far as
        these were measured; and `matching`, as of `idp.stats.matching`. `matching`: the same of the `mean` over all
        tasks, and of each of `tasks`, by model. `open_book`: of each pair, by the name of the task without passages,
        the name of the `open` one, how many `questions` both asked, and of each metric the `steps`, each with `after`,
        `before` and what `idp.stats.open_book.open_book` says.
    """
    runs = {source.name: source.runs for source in sources}
    metrics = {name: _main(measured, name, runs[name]) for name in runs}
    scores = {
        row: {task: _score(scored.tasks[task], runs[task], metrics[task]) for task in runs}
        for row, scored in measured.items()
    }
    known, _, left_out = outcomes_of(measured, sources)
    outcomes: Outcomes = {**known, **dict.fromkeys(left_out)}
    chance = {task: _chance(measured, task, metrics[task]) for task in runs}
    groups = {
        group: {
            row: {"score": _mean(scores[row], tasks), "tasks": tasks, **_against(outcomes, chance, row, tasks)}
            for row in measured
        }
        for group, tasks in suites.groups(config, list(runs)).items()
    }
    others = [row for row in measured if row != "dense"] if "dense" in measured else []
    return {
        "groups": groups,
        "matching": {
            "mean": {row: _matching(outcomes, chance, row, list(runs)) for row in others},
            "tasks": {task: {row: _matching(outcomes, chance, row, [task]) for row in others} for task in runs},
        },
        "open_book": {
            closed: _pair(measured, closed, with_passage)
            for closed, with_passage in suites.pairs(config, list(runs)).items()
        },
    }


Outcomes = Mapping[str, "dict[str, np.ndarray] | None"]  # of each task, by model: [documents], the greater the better


def _against(outcomes: Outcomes, chance: Mapping[str, float], row: str, tasks: Sequence[str]) -> dict[str, Any]:
    """One model's group against dense and compressed; nothing where a task's score is no mean over documents."""
    known = {task: table for task in tasks if (table := outcomes[task]) is not None}
    if row == "dense" or len(known) < len(tasks):
        return {}
    others = [other for after, other in STEPS if after == row and other in known[tasks[0]]]
    found: dict[str, Any] = {
        "difference": {
            other: comparison({task: (table[other], table[row]) for task, table in known.items()})["mean"]
            for other in others
        }
    }
    if "dense" in others:
        found["matching"] = _matching(outcomes, chance, row, tasks)
    return found


def _matching(outcomes: Outcomes, chance: Mapping[str, float], row: str, tasks: Sequence[str]) -> dict[str, Any] | None:
    """None where a score is no mean over documents, or no share of something: 95 % of it would mean nothing."""
    known = {task: table for task in tasks if (table := outcomes[task]) is not None}
    if len(known) < len(tasks) or any(table[side].min() < 0 for table in known.values() for side in ("dense", row)):
        return None
    return matching({task: (table["dense"], table[row]) for task, table in known.items()}, chance)


def _pair(measured: Mapping[str, Measured], closed: str, with_passage: str) -> dict[str, Any]:
    """Closed against open book, of the questions that both asked, by every metric that both have."""
    tables = {
        row: [_by_question(scored.tasks[task]) for task in (closed, with_passage)] for row, scored in measured.items()
    }
    every = [table for pair in tables.values() for table in pair]
    questions = sorted(set.intersection(*map(set, every)))
    metrics = (
        [key for key in next(iter(every[0].values()), {}) if all(key in table[questions[0]] for table in every)]
        if questions
        else []
    )
    return {
        "open": with_passage,
        "questions": len(questions),
        "metrics": {metric.removeprefix("metric:"): _by_metric(tables, metric, questions) for metric in metrics},
    }


def _by_metric(
    tables: Mapping[str, Sequence[Mapping[str, Mapping[str, float]]]], metric: str, questions: Sequence[str]
) -> dict[str, Any]:
    import numpy as np

    sides = {
        row: [np.array([table[question][metric] for question in questions], dtype=float) for table in pair]
        for row, pair in tables.items()
    }
    return {
        "scores": {
            row: {"closed": float(pair[0].mean()), "open": float(pair[1].mean())} for row, pair in sides.items()
        },
        "steps": [
            {"after": after, "before": before, **open_book(*zip(sides[before], sides[after], strict=True))}
            for after, before in STEPS
            if after in sides and before in sides
        ],
    }


def _by_question(product: Product) -> dict[str, dict[str, float]]:
    """Every metric of each document, by the document's hash: that of its own fields, however it is asked."""
    return {
        row["doc_hash"]: {key: value for key, value in row.items() if key.startswith("metric:")}
        for row in _table(product)
    }


def _main(measured: Mapping[str, Measured], task: str, runs: str) -> str:
    """The main metric, such as `acc,none`."""
    return main_metric(runs, next(iter(measured.values())).tasks[task].read("results.json")["results"][runs])


def _score(product: Product, runs: str, metric: str) -> float:
    return product.read("results.json")["results"][runs][metric]


def _mean(scores: Mapping[str, float], tasks: Sequence[str]) -> float:
    return statistics.fmean(scores[task] for task in tasks)


def _chance(measured: Mapping[str, Measured], task: str, metric: str) -> float:
    """The share of documents that a guess among the choices gets right; 0 where nothing is chosen."""
    if metric.split(",")[0] not in GUESSED:
        return 0.0
    counts = [len(each["choices"] or []) for each in _table(next(iter(measured.values())).tasks[task])]
    return statistics.fmean(1 / count if count > 1 else 0.0 for count in counts)


def _table(product: Product) -> list[dict[str, Any]]:
    """A task's documents by their number: all but the long texts."""
    from pyarrow import parquet

    path = product.path / "samples.parquet"
    names = [name for name in parquet.read_schema(path).names if name.startswith("metric:")]
    rows = parquet.read_table(path, columns=["doc_id", "doc_hash", "choices", *names]).to_pylist()
    return sorted(rows, key=lambda row: row["doc_id"])
