"""Each row against the one that it was made from, on the same documents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from idp.report.cells import Cell
from idp.report.outcomes import paired

if TYPE_CHECKING:
    import numpy as np

    from idp.analyze.significance import Interval

LEVEL = 0.05
MANY, FEW_ROWS = 10_000, 100  # resamples, and the rows up to which there are as many


@dataclass
class Comparison:
    """A row against its parent: a repair against its compressed model, a compressed model against dense.

    p-values are adjusted by Holm over all rows and tasks that are compared in one table; those of the means over all
    rows.
    """

    tasks: dict[str, float] = field(default_factory=dict)  # p of each task that could be paired
    mean: Interval | None = None  # over all tasks; None where one could not be paired
    mean_p: float | None = None  # adjusted

    def differs(self, task: str | None = None) -> bool:
        """Whether a task's score (None: the mean) differs from the parent's."""
        p = self.mean_p if task is None else self.tasks.get(task)
        return p is not None and p < LEVEL


def compare(rows: list[Cell], tasks: list[str]) -> dict[str, Comparison]:
    """Paired tests of every row that has a parent, by the row's `id`.

    Tasks are tested by `task_test`, the mean over them by `t_test`; the mean's interval is that of the bootstrap.

    Args:
        rows: of one setting.
        tasks: over which the mean is taken.
    """
    from idp.analyze.significance import holm, paired_bootstrap, t_test, task_test

    resamples = MANY if len(rows) <= FEW_ROWS else MANY // 10

    known = {row.id: row for row in rows}
    found: dict[str, Comparison] = {}
    for row in rows:
        if row.parent is None:
            continue
        before = known[row.parent]
        pairs = {task: pair for task in tasks if (pair := _pair(before, row, task)) is not None}
        comparison = found[row.id] = Comparison()
        for task, (one, other) in pairs.items():
            comparison.tasks[task], _ = task_test(one, other)
        if pairs and len(pairs) == len(tasks):
            comparison.mean = paired_bootstrap(pairs, resamples)
            comparison.mean_p = t_test(pairs)
    single = [(comparison, task) for comparison in found.values() for task in comparison.tasks]
    adjusted = holm([comparison.tasks[task] for comparison, task in single])
    for (comparison, task), p in zip(single, adjusted, strict=True):
        comparison.tasks[task] = p
    means = [comparison for comparison in found.values() if comparison.mean is not None]
    for comparison, p in zip(means, holm([each.mean_p for each in means]), strict=True):
        comparison.mean_p = p
    return found


def _pair(before: Cell, after: Cell, task: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Scores [seeds, documents] of two rows on the same documents."""
    import numpy as np

    scores = paired([*before.members, *after.members], task)
    if not scores or not len(scores[0]):
        return None
    count = len(before.members)
    return np.stack(scores[:count]), np.stack(scores[count:])
