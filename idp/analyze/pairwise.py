"""Any runs against the first of them, document by document, whichever program measured them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from idp.analyze.compare import Families, adjust, sort_by_family
from idp.errors import UserError
from idp.records.differences import SCORE, SHARE
from idp.records.one_run import Documents, NoOutcomes, OneRun, TaskRun
from idp.records.scores import is_mean, main_metric
from idp.stats.damage import brought_back
from idp.stats.flips import flips
from idp.stats.significance import LEVEL, comparison, mean_test
from idp.stats.variance import Paired

SCHEMA = 1
POOLED, MEAN = "pooled", "mean"  # a group's score: of all its documents alike, or of its tasks alike


@dataclass(frozen=True)
class _Read:
    """One metric of one task of one run."""

    scores: Mapping[int, float]  # by document, the greater the better
    hashes: Mapping[int, str]
    asked: Mapping[int, str]


class _NotCompared(Exception):
    """Why a task of two runs is not compared, in words."""


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
    reading = cache(lambda number, task: _documents(runs[number], task))
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
            sides = _sides(before, after, task)
            metrics[task] = _metric(sides, (before.name, after.name), metric)
            read = [_read(documents[side](task), sides[side], metrics[task]) for side in (0, 1)]
            common = _common(read, (before.name, after.name))
        except _NotCompared as why:
            not_compared.append({"task": task, "why": str(why)})
            continue
        pairs[task] = _arrays(read, common)
        notes += _said_of(task, read, common, sides, (before.name, after.name))
    if not pairs:
        reasons = "; ".join(f"{each['task']}: {each['why']}" for each in not_compared[:5])
        more = f"; and {len(not_compared) - 5} more" if len(not_compared) > 5 else ""
        raise UserError(f"{after.name} and {before.name} have no task in common to compare ({reasons}{more})")
    tests = comparison(pairs)
    for task, test in tests["tasks"].items():
        sign = 1 if _higher(before.tasks[task], metrics[task]) else -1
        test |= {"metric": metrics[task], **_means([pairs[task]], sign)}
    known = [task for task in pairs if _higher(before.tasks[task], metrics[task])]
    tests["mean"] |= _means(list(pairs.values())) if len(known) == len(pairs) else {"before": None, "after": None}
    shares = all((np.abs(side) <= 1).all() for pair in pairs.values() for side in pair)
    return {
        "unit": SHARE if shares else SCORE,
        "mean": tests["mean"],
        "tasks": tests["tasks"],
        "groups": _groups(before, pairs, metrics, documents[0]),
        "not_compared": not_compared,
        "notes": [*notes, *_conditions(before, after)],
    }, pairs


def _sides(before: OneRun, after: OneRun, task: str) -> tuple[TaskRun, TaskRun]:
    """The task as both ran it."""
    for run, other in ((before, after), (after, before)):
        if task not in run.tasks:
            raise _NotCompared(f"only in {other.name}")
    sides = before.tasks[task], after.tasks[task]
    for what, one, two in (
        ("version", sides[0].version, sides[1].version),
        ("examples before each question (few-shot)", sides[0].shots, sides[1].shots),
    ):
        if one is not None and two is not None and one != two:
            raise _NotCompared(f"{what}: {one} in {before.name}, {two} in {after.name}")
    return sides


def _metric(sides: tuple[TaskRun, TaskRun], names: tuple[str, str], wanted: str | None) -> str:
    """The key of the metric to compare."""
    found = []
    for side, name in zip(sides, names, strict=True):
        keys = [key for key in side.results if "," in key and "_stderr," not in key and not key.startswith("bypass,")]
        if wanted is not None:
            keys = [key for key in keys if wanted in (key, key.split(",")[0])]
        if not keys:
            raise _NotCompared(f"no metric {wanted} in {name}" if wanted else f"no metric in {name}")
        found.append(keys[0] if wanted else main_metric(side.name, {key: side.results[key] for key in keys}))
    if found[0] != found[1]:
        raise _NotCompared(
            f"{found[0]} in {names[0]}, {found[1]} in {names[1]}; choose one that both have with metric="
        )
    directions = {_higher(side, found[0]) for side in sides}
    if len(directions) > 1:
        raise _NotCompared(f"{found[0]} is better higher in one and lower in the other")
    return found[0]


def _higher(task: TaskRun, metric: str) -> bool:
    return task.higher_is_better.get(metric.split(",")[0]) is not False


def _documents(run: OneRun, task: str) -> Documents | NoOutcomes:
    try:
        return run.read(task)
    except NoOutcomes as why:
        return why


def _read(found: Documents | NoOutcomes, task: TaskRun, metric: str) -> _Read:
    """What is compared of a side.

    The greater is the better: right and wrong change places where a metric is better lower, others their sign.
    """
    if isinstance(found, NoOutcomes):
        raise _NotCompared(str(found))
    values = found.metrics.get(metric)
    if not values:
        raise _NotCompared(f"{metric} is no figure of single documents")
    if not is_mean(list(values.values()), task.results.get(metric)):
        raise _NotCompared(f"{metric} is not the mean over the documents that are there")
    if not _higher(task, metric):
        hits = set(values.values()) <= {0.0, 1.0}
        values = {document: 1 - value if hits else -value for document, value in values.items()}
    return _Read(values, found.hashes, found.asked)


def _common(read: Sequence[_Read], names: Sequence[str]) -> list[int]:
    """The numbers of the documents that all have, ascending."""
    common = sorted(set.intersection(*(set(each.scores) for each in read)))
    if not common:
        raise _NotCompared(f"no document that both {names[0]} and {names[1]} have")
    apart = [n for n in common if len({each.hashes[n] for each in read if n in each.hashes}) > 1]
    if apart:
        more = f", nor are {len(apart) - 1:,} more of {len(common):,}" if len(apart) > 1 else ""
        raise _NotCompared(f"document {apart[0]} is not the same one in both{more}: another data set, split or order")
    return common


def _arrays(read: Sequence[_Read], common: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    before, after = (np.array([each.scores[number] for number in common], dtype=float) for each in read)
    return before, after


def _said_of(
    task: str, read: Sequence[_Read], common: Sequence[int], sides: Sequence[TaskRun], names: Sequence[str]
) -> list[str]:
    """What a reader has to know of a comparison that is made all the same."""
    notes = []
    counts = [len(each.scores) for each in read]
    if max(counts) > len(common):
        have = ", ".join(f"{count:,} in {name}" for count, name in zip(counts, names, strict=True))
        notes.append(f"{task}: the {len(common):,} documents that both have ({have})")
    if not all(number in each.hashes for each in read for number in common):
        notes.append(f"{task}: paired by number alone, since not both runs say which documents these are")
    otherwise = sum(len({each.asked[n] for each in read if n in each.asked}) > 1 for n in common)
    if otherwise:
        notes.append(
            f"{task}: {otherwise:,} of {len(common):,} documents were put in other words to one model than to the other"
            " (chat template, system instruction, description or examples)"
        )
    if sides[0].generation != sides[1].generation and None not in (sides[0].generation, sides[1].generation):
        notes.append(f"{task}: answers were generated with other options")
    return notes


def _conditions(before: OneRun, after: OneRun) -> list[str]:
    apart = [
        name
        for name in before.conditions
        if name in after.conditions and before.conditions[name] != after.conditions[name]
    ]
    return [f"not the same in both: {', '.join(apart)}"] if apart else []


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
        sign = 1 if _higher(run.tasks[tasks[0]], metric) else -1
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
    three = [0, 1, number]
    rows: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for task in runs[0].tasks:
        try:
            keys = [_metric(_sides(runs[0], runs[n], task), (runs[0].name, runs[n].name), metric) for n in three[1:]]
            read = [_read(reading(n, task), runs[n].tasks[task], keys[0]) for n in three]
            common = _common(read, [runs[n].name for n in three])
        except _NotCompared:
            continue
        one, two, last = (np.array([each.scores[n] for n in common], dtype=float) for each in read)
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
