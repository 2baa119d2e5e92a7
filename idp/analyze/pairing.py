"""What of two runs is compared: the same task, by the same metric, on the documents that both have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from idp.records.one_run import Documents, NoOutcomes, OneRun, TaskRun
from idp.records.scores import is_mean, main_metric


@dataclass(frozen=True)
class Side:
    """One metric of one task of one run."""

    scores: Mapping[int, float]  # by document, as the run reports them
    hashes: Mapping[int, str]
    asked: Mapping[int, str]


class NotCompared(Exception):
    """Why a task of two runs is not compared, in words."""


def sides_of(before: OneRun, after: OneRun, task: str) -> tuple[TaskRun, TaskRun]:
    """The task as both ran it.

    Raises:
        NotCompared: only one of them did, or of another version, or with other examples.
    """
    for run, other in ((before, after), (after, before)):
        if task not in run.tasks:
            raise NotCompared(f"only in {other.name}")
    sides = before.tasks[task], after.tasks[task]
    for what, one, two in (
        ("version", sides[0].version, sides[1].version),
        ("examples before each question (few-shot)", sides[0].shots, sides[1].shots),
    ):
        if one is not None and two is not None and one != two:
            raise NotCompared(f"{what}: {one} in {before.name}, {two} in {after.name}")
    return sides


def metric_of(sides: tuple[TaskRun, TaskRun], names: tuple[str, str], wanted: str | None) -> str:
    """The key of the metric to compare.

    Raises:
        NotCompared: they have none in common, or it is not the main one of both and none is `wanted` by name.
    """
    found = []
    for side, name in zip(sides, names, strict=True):
        keys = [key for key in side.results if "," in key and "_stderr," not in key and not key.startswith("bypass,")]
        if wanted is not None:
            keys = [key for key in keys if wanted in (key, key.split(",")[0])]
        if not keys:
            raise NotCompared(f"no metric {wanted} in {name}" if wanted else f"no metric in {name}")
        found.append(keys[0] if wanted else main_metric(side.name, {key: side.results[key] for key in keys}))
    if found[0] != found[1]:
        raise NotCompared(f"{found[0]} in {names[0]}, {found[1]} in {names[1]}; choose one that both have with metric=")
    directions = {higher_is_better(side, found[0]) for side in sides}
    if len(directions) > 1:
        raise NotCompared(f"{found[0]} is better higher in one and lower in the other")
    return found[0]


def higher_is_better(task: TaskRun, metric: str) -> bool:
    """As lm-eval says, and where it says nothing."""
    return task.higher_is_better.get(metric.split(",")[0]) is not False


def documents_of(run: OneRun, task: str) -> Documents | NoOutcomes:
    """A task's documents, or why there are none."""
    try:
        return run.read(task)
    except NoOutcomes as why:
        return why


def read_side(found: Documents | NoOutcomes, task: TaskRun, metric: str) -> Side:
    """What is compared of one of the runs.

    Raises:
        NotCompared: there is nothing to compare, or the task's score is no mean of it.
    """
    if isinstance(found, NoOutcomes):
        raise NotCompared(str(found))
    values = found.metrics.get(metric)
    if not values:
        raise NotCompared(f"{metric} is no figure of single documents")
    if not is_mean(list(values.values()), task.results.get(metric)):
        raise NotCompared(f"{metric} is not the mean over the documents that are there")
    return Side(values, found.hashes, found.asked)


def common_documents(read: Sequence[Side], names: Sequence[str]) -> list[int]:
    """The numbers of the documents that all have, ascending.

    Raises:
        NotCompared: there is none, or one number is several documents.
    """
    common = sorted(set.intersection(*(set(each.scores) for each in read)))
    if not common:
        raise NotCompared(f"no document that both {names[0]} and {names[1]} have")
    apart = [n for n in common if len({each.hashes[n] for each in read if n in each.hashes}) > 1]
    if apart:
        more = f", nor are {len(apart) - 1:,} more of {len(common):,}" if len(apart) > 1 else ""
        raise NotCompared(f"document {apart[0]} is not the same one in both{more}: another data set, split or order")
    return common


def arrays(read: Sequence[Side], common: Sequence[int], higher: bool) -> tuple[np.ndarray, ...]:
    """What each run scored on the common documents, [documents] each, the greater the better.

    Where a metric is better lower (not `higher`), right and wrong change places, and other scores their sign.
    """
    found = tuple(np.array([each.scores[number] for number in common], dtype=float) for each in read)
    if higher:
        return found
    hits = all(np.isin(side, (0, 1)).all() for side in found)
    return tuple(1 - side if hits else -side for side in found)


def said_of(
    task: str, read: Sequence[Side], common: Sequence[int], sides: Sequence[TaskRun], names: Sequence[str]
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


def conditions(before: OneRun, after: OneRun) -> list[str]:
    """What of the way all tasks were asked differs, as far as both runs say."""
    apart = [
        name
        for name in before.conditions
        if name in after.conditions and before.conditions[name] != after.conditions[name]
    ]
    return [f"not the same in both: {', '.join(apart)}"] if apart else []
