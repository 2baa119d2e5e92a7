"""Any runs against the first of them, document by document, whichever program measured them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from typing import Any

import numpy as np

from idp.analyze.compare import Families, adjust, sort_by_family
from idp.analyze.pairing import (
    NotCompared,
    arrays,
    common_documents,
    conditions,
    documents_of,
    higher_is_better,
    metric_of,
    read_side,
    said_of,
    sides_of,
)
from idp.errors import UserError
from idp.records.differences import SCORE, SHARE
from idp.records.one_run import Documents, NoOutcomes, OneRun
from idp.records.scores import is_mean
from idp.stats.damage import brought_back
from idp.stats.flips import flips
from idp.stats.significance import LEVEL, comparison, mean_test
from idp.stats.variance import Paired

SCHEMA = 1
POOLED, MEAN = "pooled", "mean"  # a group's score: of all its documents alike, or of its tasks alike


def compare_runs(runs: Sequence[OneRun], metric: str | None = None) -> dict[str, Any]:
    """Each run against the first one, on the documents that both have.

    Documents are paired by their number in the split, and held to be the same ones by lm-eval's hash of them. A task is
    left out, and said why, where the same number is another document, or where the definition's version, the examples
    before each question, or the metric differ. p-values are adjusted (Holm) over all comparisons: the means over tasks
    as one family, the tasks as another, groups as a third.

    Args:
        runs: the baseline first.
        metric: the metric to compare, such as `acc_norm` or `exact_match,strict-match`; None: each task's main one.

    Returns:
        JSON: `baseline`, and of each other run its `name`, `place`, what `idp.stats.significance.comparison` says
        (`mean`, `tasks`), each with `p_adjusted`, `before` and `after` (the scores on those documents) and, of tasks,
        the `metric`; `groups` likewise, with how each is `weighted`; the `unit` of differences; `not_compared` and
        `notes`. With three runs or more `brought_back`: of what the second one lost, what each further one regains.

    Raises:
        UserError: no task of a run can be compared.
    """
    names = [run.name for run in runs]
    reading = cache(lambda number, task: documents_of(runs[number], task))
    families: Families = {}
    found: list[dict[str, Any]] = []
    for number, run in enumerate(runs[1:], 1):
        made, pairs = _against(runs[0], run, metric, [partial(reading, 0), partial(reading, number)])
        sort_by_family(families, {**made, "graded": None}, pairs, {})
        families.setdefault(("hits", "groups"), []).extend(
            (group, _of_group(group["weighted"], {task: pairs[task] for task in group["tasks"]}))
            for group in made["groups"].values()
        )
        found.append({"name": names[number], "place": run.place, "by": run.by, **made})
    for family in families.values():
        adjust(family)
    return {
        "schema": SCHEMA,
        "level": LEVEL,
        "baseline": {"name": names[0], "place": runs[0].place, "by": runs[0].by},
        "comparisons": found,
        "brought_back": [
            _brought_back(runs, metric, number, found[0]["mean"], reading) for number in range(2, len(runs))
        ],
        "notes": [note for run in runs for note in run.notes],
    }


def _against(
    before: OneRun, after: OneRun, metric: str | None, documents: Sequence[Callable[[str], Documents | NoOutcomes]]
) -> tuple[dict[str, Any], dict[str, tuple[np.ndarray, np.ndarray]]]:
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    metrics: dict[str, str] = {}
    not_compared: list[dict[str, str]] = []
    notes: list[str] = []
    for task in dict.fromkeys([*before.tasks, *after.tasks]):
        try:
            sides = sides_of(before, after, task)
            metrics[task] = metric_of(sides, (before.name, after.name), metric)
            read = [read_side(documents[side](task), sides[side], metrics[task]) for side in (0, 1)]
            common = common_documents(read, (before.name, after.name))
        except NotCompared as why:
            not_compared.append({"task": task, "why": str(why)})
            continue
        one, other = arrays(read, common, higher_is_better(sides[0], metrics[task]))
        pairs[task] = one, other
        notes += said_of(task, read, common, sides, (before.name, after.name))
    if not pairs:
        reasons = "; ".join(f"{each['task']}: {each['why']}" for each in not_compared[:5])
        more = f"; and {len(not_compared) - 5} more" if len(not_compared) > 5 else ""
        raise UserError(f"{after.name} and {before.name} have no task in common to compare ({reasons}{more})")
    tests = comparison(pairs)
    for task, test in tests["tasks"].items():
        sign = 1 if higher_is_better(before.tasks[task], metrics[task]) else -1
        test |= {"metric": metrics[task], **_means([pairs[task]], sign)}
    known = [task for task in pairs if higher_is_better(before.tasks[task], metrics[task])]
    tests["mean"] |= _means(list(pairs.values())) if len(known) == len(pairs) else {"before": None, "after": None}
    shares = all((np.abs(side) <= 1).all() for pair in pairs.values() for side in pair)
    return {
        "unit": SHARE if shares else SCORE,
        "mean": tests["mean"],
        "tasks": tests["tasks"],
        "groups": _groups(before, pairs, metrics, documents[0]),
        "not_compared": not_compared,
        "notes": [*notes, *conditions(before, after)],
    }, pairs


def _means(pairs: Sequence[tuple[np.ndarray, np.ndarray]], sign: int = 1) -> dict[str, float]:
    """The scores themselves, as they are reported: `sign` is that of a metric that is better lower."""
    before, after = (float(np.mean([pair[side].mean() for pair in pairs])) for side in (0, 1))
    if sign > 0:
        return {"before": before, "after": after}
    hits = all(np.isin(side, (0, 1)).all() for pair in pairs for side in pair)
    return {"before": 1 - before if hits else -before, "after": 1 - after if hits else -after}


def _groups(
    run: OneRun, pairs: Paired, metrics: Mapping[str, str], documents: Callable[[str], Any]
) -> dict[str, dict[str, Any]]:
    """The groups of which all tasks are compared, by one metric, each weighted as the run itself does."""
    found = {}
    for name, tasks in run.groups.items():
        if not tasks or not set(tasks) <= set(pairs) or len({metrics[task] for task in tasks}) > 1:
            continue
        metric, members = metrics[tasks[0]], {task: pairs[task] for task in tasks}
        counts = [len(documents(task).metrics[metric]) for task in tasks]
        weighted = _weighting(run, name, [run.tasks[task].results[metric] for task in tasks], counts, metric)
        table = _of_group(weighted, members)
        sign = 1 if higher_is_better(run.tasks[tasks[0]], metric) else -1
        found[name] = {
            **mean_test(table),
            "metric": metric,
            "tasks": list(tasks),
            "weighted": weighted,
            **_means(list(table.values()), sign),
        }
    return found


def _weighting(run: OneRun, group: str, scores: Sequence[float], counts: Sequence[int], metric: str) -> str:
    """Whether the score that the run reports of a group is that of all documents alike; else its tasks count alike."""
    reported = (run.group_results.get(group) or {}).get(metric)
    return POOLED if is_mean([float(np.average(scores, weights=counts))], reported) else MEAN


def _of_group(weighted: str, members: Paired) -> Paired:
    """A group as tests take it: its tasks, or all its documents as those of one task."""
    if weighted == MEAN:
        return members
    before, after = (np.concatenate([pair[side] for pair in members.values()]) for side in (0, 1))
    return {"all": (before, after)}


def _brought_back(
    runs: Sequence[OneRun],
    metric: str | None,
    number: int,
    damage: Mapping[str, Any],
    reading: Callable[[int, str], Documents | NoOutcomes],
) -> dict[str, Any]:
    """Of what the second run lost against the first, what a further one has again: the share, and documents."""
    three = [runs[0], runs[1], runs[number]]
    rows: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for task in runs[0].tasks:
        try:
            for other in three[1:]:
                key = metric_of(sides_of(runs[0], other, task), (runs[0].name, other.name), metric)
            places = zip((0, 1, number), three, strict=True)
            read = [read_side(reading(place, task), run.tasks[task], key) for place, run in places]
            common = common_documents(read, [run.name for run in three])
        except NotCompared:
            continue
        one, two, last = arrays(read, common, higher_is_better(runs[0].tasks[task], key))
        rows[task] = one, two, last
    lost = damage["difference"] < 0 and damage["p"] < LEVEL
    share = brought_back(rows) if lost and rows else None
    hits = {task: table for task, table in rows.items() if all(np.isin(side, (0, 1)).all() for side in table)}
    turned = [flips(*table).counts for table in hits.values()]
    return {
        "name": runs[number].name,
        "against": runs[1].name,
        "tasks": list(rows),
        "share": asdict(share) if share is not None else None,
        "documents": {
            kind: sum(each[kind] for each in turned)
            for kind in ("documents", "broken", "restored", "newly_broken", "never_known", "learned")
        }
        if turned
        else None,
    }
