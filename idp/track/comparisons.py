"""A run's models held against one another on the same documents: what the record says of damage and repair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from idp.evaluate.stage import Measured
    from idp.evaluate.tasks import TaskSource
    from idp.store import Product

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
        JSON: of each pair `after` and `before`, what `idp.analyze.significance.comparison` says (`mean`, `tasks`,
        `graded`; differences of scores, above 0 where `after` is the better one, also where a metric is better when it
        is lower), the same of each group's mean (`groups`), the tasks `left_out` because their score is not a mean
        over documents, and the `unit` of the differences: `share` of documents, or `score` where some task's outcomes
        do not lie between 0 and 1. Of repaired against compressed also `damage_brought_back`, of the mean and of each
        task and group: `share`, `low`, `high`, or None where there was no damage beyond noise.
    """
    outcomes, left_out = outcomes_of(measured, sources)
    graded = graded_of(measured, sources)
    found = [
        {"after": after, "before": before, **_pair(outcomes, graded, after, before, groups or {}), "left_out": left_out}
        for after, before in PAIRS
        if after in measured and before in measured
    ]
    by_pair = {(each["after"], each["before"]): each for each in found}
    if ("repaired", "compressed") in by_pair and ("compressed", "dense") in by_pair:
        _add_shares(by_pair["repaired", "compressed"], by_pair["compressed", "dense"], outcomes, groups or {})
    return found


def outcomes_of(measured: Mapping[str, Measured], sources: Sequence[TaskSource]) -> tuple[Outcomes, list[str]]:
    """What each model scored on each document, in one order; and the tasks that have no such outcomes."""
    outcomes: Outcomes = {}
    left_out = []
    for source in sources:
        tables = {row: _documents(scores.tasks[source.name], source.runs) for row, scores in measured.items()}
        known = [table for table in tables.values() if table]
        shared = sorted(set(known[0]).intersection(*known)) if len(known) == len(tables) else []
        if not shared or any(len(table) != len(shared) for table in known):
            left_out.append(source.name)
            continue
        outcomes[source.name] = {row: _array([table[document] for document in shared]) for row, table in tables.items()}
    return outcomes, left_out


def _documents(product: Product, runs: str) -> dict[int, float] | None:
    """The main metric of each document, negative where lower is better.

    None where it is not one of single documents, or the task's score is not their mean, as that of a correlation or a
    perplexity: a difference of such means would be one of something else.
    """
    from pyarrow import parquet

    from idp.evaluate.tasks import main_metric

    results = product.read("results.json")
    metric = main_metric(runs, results["results"][runs])
    path, column = product.path / "samples.parquet", f"metric:{metric}"
    if column not in parquet.read_schema(path).names:
        return None
    table = parquet.read_table(path, columns=["doc_id", column])
    values = table[column].to_pylist()
    if not values or any(value is None or not math.isfinite(value) for value in values):
        return None
    score = results["results"][runs][metric]
    if score is None or not math.isclose(sum(values) / len(values), score, rel_tol=1e-6, abs_tol=1e-9):
        return None
    higher = results["higher_is_better"][runs].get(metric.split(",")[0]) is not False
    return dict(zip(table["doc_id"].to_pylist(), (value if higher else -value for value in values), strict=True))


def _pair(
    outcomes: Outcomes, graded: Outcomes, after: str, before: str, groups: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    from idp.analyze.significance import comparison

    pairs = {task: (rows[before], rows[after]) for task, rows in outcomes.items()}
    if not pairs:
        return {"mean": None, "tasks": {}, "graded": None, "groups": {}, "unit": "score"}
    sharper = {task: (rows[before], rows[after]) for task, rows in graded.items()}
    found = comparison(pairs, sharper or None)
    found["groups"] = {
        group: comparison(members)["mean"]
        for group, tasks in groups.items()
        if (members := {task: pairs[task] for task in tasks if task in pairs}) and len(members) == len(tasks)
    }
    shares = all((abs(side) <= 1).all() for pair in pairs.values() for side in pair)
    return found | {"unit": "share" if shares else "score"}


def _add_shares(
    repair: dict[str, Any], damage: dict[str, Any], outcomes: Outcomes, groups: Mapping[str, Sequence[str]]
) -> None:
    """Adds `damage_brought_back` to repaired against compressed: of the mean, and of each task and group."""
    from idp.analyze.damage import beyond_noise, brought_back
    from idp.analyze.significance import LEVEL

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


def _array(values: list[float]) -> np.ndarray:
    import numpy as np

    return np.array(values, dtype=float)
