"""A run's models held against one another on the same documents: what the record says of damage and repair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from idp.evaluate.measured import Measured
    from idp.store import Product
    from idp.tasks.tasks import TaskSource

# What is compared: the model after a step, and the one before it.
PAIRS = (("compressed", "dense"), ("repaired", "compressed"), ("repaired", "dense"))
Outcomes = dict[str, dict[str, "np.ndarray"]]  # of each task, by the model's row: [documents], the greater the better


def of_run(
    measured: Mapping[str, Measured], sources: Sequence[TaskSource], groups: Mapping[str, Sequence[str]] | None = None
) -> list[dict[str, Any]]:
    """Every pair of a run's models that is worth comparing, as far as they were measured.

    Args:
        measured: what each model scored, by `dense`, `compressed`, `repaired`.
        sources: the tasks.
        groups: names of tasks that are read together, by the group's name.

    Returns:
        JSON: of each pair `after` and `before`, what `idp.stats.significance.comparison` says (`mean`, `tasks`,
        `graded`; differences of scores, above 0 where `after` is the better one, also where a metric is better when it
        is lower), the same of each group's mean (`groups`), the tasks `left_out` because their score is not a mean
        over documents, and the `unit` of the differences: `share` of documents, or `score` where some task's outcomes
        do not lie between 0 and 1. Of repaired against compressed also `damage_brought_back`, of the mean and of each
        task and group: `share`, `low`, `high`, or None where there was no damage beyond noise; and of each task the
        documents that compression has `broken` (dense has them right), and those of them `brought_back`. `texts`:
        the same of running text, as `idp.evaluate.text_comparisons.add_texts` has it.
    """
    from idp.evaluate.text_comparisons import add_texts

    outcomes, graded, left_out = outcomes_of(measured, sources)
    found = [
        {"after": after, "before": before, **_pair(outcomes, graded, after, before, groups or {}), "left_out": left_out}
        for after, before in PAIRS
        if after in measured and before in measured
    ]
    by_pair = {(each["after"], each["before"]): each for each in found}
    if ("repaired", "compressed") in by_pair and ("compressed", "dense") in by_pair:
        _add_shares(by_pair["repaired", "compressed"], by_pair["compressed", "dense"], outcomes, groups or {})
    add_texts(found, measured)
    return found


def outcomes_of(
    measured: Mapping[str, Measured], sources: Sequence[TaskSource]
) -> tuple[Outcomes, Outcomes, list[str]]:
    """What each model scored on each document, by ascending number; the same graded; and the tasks without either.

    Graded are only tasks whose every document has a probability of the right choice under every model.
    """
    outcomes: Outcomes = {}
    graded: Outcomes = {}
    left_out = []
    for source in sources:
        tables = {row: _documents(scores.tasks[source.name], source.runs) for row, scores in measured.items()}
        numbers = {tuple(table[0]) for table in tables.values() if table is not None}
        known = {row: table for row, table in tables.items() if table is not None}
        if len(numbers) != 1 or len(known) < len(tables):
            left_out.append(source.name)
            continue
        outcomes[source.name] = {row: scores for row, (_, scores, _) in known.items()}
        sharper = {row: chances for row, (_, _, chances) in known.items() if chances is not None}
        if len(sharper) == len(tables):
            graded[source.name] = sharper
    return outcomes, graded, left_out


def _documents(product: Product, runs: str) -> tuple[list[int], np.ndarray, np.ndarray | None] | None:
    """Numbers of documents, ascending; the main metric of each, the greater the better; its graded outcome, if any.

    None where the metric is not one of single documents, or the task's score is not their mean, as that of a
    correlation or a perplexity: a difference of such means would be one of something else.
    """
    import numpy as np
    from pyarrow import parquet

    from idp.records.outcomes import graded_documents
    from idp.records.scores import is_mean, main_metric

    results = product.read("results.json")
    metric = main_metric(runs, results["results"][runs])
    path, column = product.path / "samples.parquet", f"metric:{metric}"
    known = parquet.read_schema(path).names
    if column not in known:
        return None
    columns = [name for name in ("doc_id", "choices", "loglikelihoods", "greedy", "target", column) if name in known]
    rows = sorted(parquet.read_table(path, columns=columns).to_pylist(), key=lambda row: row["doc_id"])
    values = [row[column] for row in rows]
    if not values or any(value is None or not math.isfinite(value) for value in values):
        return None
    if not is_mean(values, results["results"][runs][metric]):
        return None
    scores, numbers = np.array(values, dtype=float), [row["doc_id"] for row in rows]
    if results["higher_is_better"][runs].get(metric.split(",")[0]) is False:
        return numbers, (1 - scores if np.isin(scores, (0, 1)).all() else -scores), None
    return numbers, scores, graded_documents(rows, metric)


def _pair(
    outcomes: Outcomes, graded: Outcomes, after: str, before: str, groups: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    from idp.records.differences import SCORE, SHARE
    from idp.stats.significance import comparison

    pairs = {task: (rows[before], rows[after]) for task, rows in outcomes.items()}
    if not pairs:
        return {"mean": None, "tasks": {}, "graded": None, "groups": {}, "unit": SCORE}
    sharper = {task: (rows[before], rows[after]) for task, rows in graded.items()}
    found = comparison(pairs, sharper or None)
    found["groups"] = {
        group: comparison(members)["mean"]
        for group, tasks in groups.items()
        if (members := {task: pairs[task] for task in tasks if task in pairs}) and len(members) == len(tasks)
    }
    shares = all((abs(side) <= 1).all() for pair in pairs.values() for side in pair)
    return found | {"unit": SHARE if shares else SCORE}


def _add_shares(
    repair: dict[str, Any], damage: dict[str, Any], outcomes: Outcomes, groups: Mapping[str, Sequence[str]]
) -> None:
    """Adds to repaired against compressed what was brought back: shares of the damage, and documents."""
    from idp.stats.damage import beyond_noise, brought_back
    from idp.stats.significance import LEVEL

    def share(tasks: Sequence[str]) -> dict[str, float] | None:
        rows = {task: outcomes[task] for task in tasks}
        three = {task: (each["dense"], each["compressed"], each["repaired"]) for task, each in rows.items()}
        found = brought_back(three)
        return asdict(found) if found is not None else None

    mean = damage["mean"]
    lost = mean is not None and mean["difference"] < 0 and mean["p"] < LEVEL
    repair["damage_brought_back"] = share(list(outcomes)) if lost else None
    for part, members in (("tasks", {task: [task] for task in outcomes}), ("groups", groups)):
        names = list(damage[part])
        tests = [damage[part][name] for name in names]
        damaged = beyond_noise([-test["difference"] for test in tests], [test["p"] for test in tests])
        for name, beyond in zip(names, damaged, strict=True):
            repair[part][name]["damage_brought_back"] = share(list(members[name])) if beyond else None
    for task, rows in outcomes.items():
        hits = repair["tasks"][task]["gained"] is not None and damage["tasks"][task]["gained"] is not None
        broken = (rows["dense"] == 1) & (rows["compressed"] == 0)
        counts = {"broken": int(broken.sum()), "brought_back": int((broken & (rows["repaired"] == 1)).sum())}
        repair["tasks"][task] |= counts if hits else dict.fromkeys(counts)
