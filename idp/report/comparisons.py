"""Rows against one another on the same documents: each with what it was made from, and with dense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from idp.records.cell import Cell
from idp.records.outcomes import paired

if TYPE_CHECKING:
    import numpy as np

    from idp.stats.damage import Share

LEVEL = 0.05


@dataclass
class Difference:
    """By how much one row is above another: `idp.stats.significance.comparison` says what each figure is."""

    difference: float
    low: float
    high: float
    p: float
    documents: int
    detectable: float | None = None
    documents_to_decide: int | None = None
    test: str = "t_test"
    gained: float | None = None
    lost: float | None = None
    adjusted: float | None = None  # p, by Holm over all that one table compares

    @property
    def differs(self) -> bool:
        """Whether it is beyond chance, among all that the table compares."""
        return self.adjusted is not None and self.adjusted < LEVEL


@dataclass
class Comparison:
    """A row against another: each task that both measured on the same documents, groups of tasks, the mean over all."""

    before: str = ""  # `id` of the row that it is above or below
    tasks: dict[str, Difference] = field(default_factory=dict)
    groups: dict[str, Difference] = field(default_factory=dict)  # those of which all tasks could be paired
    mean: Difference | None = None  # over all tasks; None where one could not be paired

    def of(self, key: str) -> Difference | None:
        """Of a column of the score table: a task, `mean GROUP` or `mean`."""
        return self.mean if key == "mean" else self.tasks.get(key) or self.groups.get(key.removeprefix("mean "))

    def differs(self, task: str | None = None) -> bool:
        """Whether a task's score (None: the mean) differs from that of the row before."""
        found = self.mean if task is None else self.tasks.get(task)
        return found is not None and found.differs


def compare(
    rows: Sequence[Cell], tasks: Sequence[str], groups: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Comparison]:
    """Paired tests of every row that has a parent against that, by the row's `id`.

    p-values are adjusted by Holm: of single tasks over all rows and tasks, of the means over all rows. Those of rows
    that use the labels are not: they are upper bounds, and claim nothing.

    Args:
        rows: of one setting.
        tasks: over which the mean is taken.
        groups: of tasks, by name; of each the mean as well.
    """
    known = {row.id: row for row in rows}
    found = {
        row.id: against(known[row.parent], row, tasks, groups or {}) for row in rows if row.parent in known
    }  # a row without a parent has nothing to stand against
    _adjust_all([found[row.id] for row in rows if row.id in found and not row.first.uses_labels])
    return found


def compare_to_dense(
    rows: Sequence[Cell], tasks: Sequence[str], groups: Mapping[str, Sequence[str]], made: Mapping[str, Comparison]
) -> dict[str, Comparison]:
    """The same against the dense row; `made` is what `compare` found, which has some of them."""
    dense = next((row for row in rows if row.first.role == "dense"), None)
    if dense is None:
        return {}
    others = [row for row in rows if row is not dense]
    found = {row.id: made[row.id] if row.parent == dense.id else against(dense, row, tasks, groups) for row in others}
    _adjust_all([found[row.id] for row in others if row.parent != dense.id and not row.first.uses_labels])
    return found


def against(before: Cell, after: Cell, tasks: Sequence[str], groups: Mapping[str, Sequence[str]]) -> Comparison:
    """One row against another, whatever they are.

    Where the outcomes of documents are gone, what the run itself found is taken, of single runs.
    """
    from idp.stats.significance import comparison, mean_test

    pairs = {task: pair for task in tasks if (pair := _pair(before, after, task)) is not None}
    found = Comparison(before.id)
    if not pairs:
        return _recorded(before, after, tasks)
    tests = comparison(pairs)
    found.tasks = {task: _difference(test) for task, test in tests["tasks"].items()}
    if len(pairs) == len(tasks):
        found.mean = _difference(tests["mean"])
    for name, members in groups.items():
        if all(task in pairs for task in members):
            found.groups[name] = _difference(mean_test({task: pairs[task] for task in members}))
    return found


def share_of_damage(dense: Cell, compressed: Cell, repaired: Cell, tasks: Sequence[str]) -> Share | None:
    """What of the damage the repair brings back, of the means over tasks, as `idp.stats.damage` has it.

    Returns:
        None where a task could not be paired, or there is no damage beyond noise.
    """
    from idp.stats.damage import brought_back

    rows = {}
    for task in tasks:
        damage, gain = _pair(compressed, dense, task), _pair(compressed, repaired, task)
        if damage is None or gain is None:
            return None
        rows[task] = damage[1], damage[0], gain[1]
    return brought_back(rows) if rows else None


def _difference(test: Mapping[str, Any]) -> Difference:
    return Difference(**{name: test[name] for name in Difference.__dataclass_fields__ if name in test})


def _recorded(before: Cell, after: Cell, tasks: Sequence[str]) -> Comparison:
    """What the record of the run that measured both says."""
    found = Comparison(before.id)
    kept = any(score.samples is not None for row in (before, after) for score in row.first.tasks.values())
    if kept or before.runs > 1 or after.runs > 1 or not set(before.first.runs) & set(after.first.runs):
        return found
    tests = after.first.comparisons.get(before.first.role)
    if tests is None:
        return found
    found.tasks = {task: _difference(test) for task, test in (tests.get("tasks") or {}).items() if task in tasks}
    if (mean := tests.get("mean")) and set(found.tasks) == set(tasks):
        found.mean = _difference(mean)
    return found


def _adjust_all(found: Sequence[Comparison]) -> None:
    _adjust([test for comparison in found for test in comparison.tasks.values()])
    _adjust([comparison.mean for comparison in found if comparison.mean is not None])


def _adjust(tests: Sequence[Difference]) -> None:
    from idp.stats.significance import holm

    for test, adjusted in zip(tests, holm([test.p for test in tests]) if tests else [], strict=True):
        test.adjusted = adjusted


def _pair(before: Cell, after: Cell, task: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Scores [runs, documents] of two rows on the same documents, the greater the better."""
    import numpy as np

    scores = paired([*before.members, *after.members], task)
    if not scores or not len(scores[0]):
        return None
    if not before.first.tasks[task].higher_is_better:
        scores = [-each for each in scores]
    return np.stack(scores[: before.runs]), np.stack(scores[before.runs :])
