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

    A single run's right and wrong answers are tested by McNemar's exact test, several seeds and the mean over tasks by
    `t_test`; the mean's interval is that of the bootstrap, whose own p-values could not get below one in the number of
    its resamples, which is not enough for a table of hundreds of rows.

    Args:
        rows: of one setting.
        tasks: over which the mean is taken.
    """
    from idp.analyze.significance import holm, mcnemar, paired_bootstrap

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
            if len(one) == len(other) == 1 and _right_or_wrong(one) and _right_or_wrong(other):
                comparison.tasks[task] = mcnemar(one[0] > 0, other[0] > 0)
            else:
                comparison.tasks[task] = t_test({task: (one, other)})
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


def t_test(pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> float:
    """Two-sided p-value of no difference in the mean over tasks, paired over documents.

    The variance is that of the mean over documents, and where a side has several seeds that of the mean over those;
    degrees of freedom as by Welch and Satterthwaite.

    Args:
        pairs: of each task the scores before and after, each [seeds, documents].
    """
    from scipy.stats import t

    differences = [after.mean(0) - before.mean(0) for before, after in pairs.values()]
    difference = sum(each.mean() for each in differences) / len(pairs)
    parts = [(each.var(ddof=1) / len(each) / len(pairs) ** 2, len(each) - 1) for each in differences if len(each) > 1]
    for side in (0, 1):
        seeds = sum(pair[side].mean(1) for pair in pairs.values()) / len(pairs)
        if len(seeds) > 1:
            parts.append((seeds.var(ddof=1) / len(seeds), len(seeds) - 1))
    variance = sum(part for part, _ in parts)
    if not variance > 0:
        return 1.0 if abs(difference) < 1e-9 else 0.0
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    return float(2 * t.sf(abs(difference) / variance**0.5, freedom))


def _pair(before: Cell, after: Cell, task: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Scores [seeds, documents] of two rows on the same documents."""
    import numpy as np

    scores = paired([*before.members, *after.members], task)
    if not scores or not len(scores[0]):
        return None
    count = len(before.members)
    return np.stack(scores[:count]), np.stack(scores[count:])


def _right_or_wrong(scores: np.ndarray) -> bool:
    return bool(((scores == 0) | (scores == 1)).all())
