"""The variance of a paired difference: what documents cause, and what the runs' own spread adds to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Paired = Mapping[str, tuple[np.ndarray, np.ndarray]]
CERTAIN = 1e9  # degrees of freedom of what is known
NOTHING = 1e-12  # differences and variances below this are rounding


@dataclass(frozen=True)
class Estimate:
    """A difference in the unweighted mean over tasks, and its variance in the parts that it has.

    `documents` is the variance that the choice of documents causes, run-by-document noise among it; `runs` what the
    runs' own spread adds. `per_document` is the first where every task had a single document: of n documents each it
    is `per_document / n`. `freedom` are degrees of freedom (Welch and Satterthwaite), `freedom_of_runs` those of
    `runs` alone.
    """

    difference: float
    documents: float
    runs: float
    per_document: float
    freedom: float
    freedom_of_documents: float
    freedom_of_runs: float

    @property
    def variance(self) -> float:
        """Of the difference."""
        return self.documents + self.runs

    def interval(self, level: float) -> tuple[float, float]:
        """The t interval that leaves out `level`."""
        from scipy.special import stdtrit

        half = float(stdtrit(self.freedom, 1 - level / 2)) * self.variance**0.5
        return self.difference - half, self.difference + half

    def above(self, bound: float = 0.0) -> float:
        """One-sided p-value of the hypothesis that the true difference is `bound` or less."""
        return self._tail(self.difference - bound)

    def below(self, bound: float = 0.0) -> float:
        """One-sided p-value of the hypothesis that the true difference is `bound` or more."""
        return self._tail(bound - self.difference)

    def two_sided(self) -> float:
        """The p-value of no difference: below `level` where, and only where, the interval of `level` excludes 0."""
        return 2 * min(self.above(), self.below())

    def _tail(self, beyond: float) -> float:
        from scipy.special import stdtr

        if self.variance < NOTHING**2:
            return 0.5 if abs(beyond) < NOTHING else float(beyond < 0)
        return float(stdtr(self.freedom, -beyond / self.variance**0.5))


def estimate(by_task: Paired) -> Estimate:
    """The difference after - before in the unweighted mean over tasks, with its variance.

    The documents' variance is that of the differences between the means over runs, so it holds what runs and documents
    do together: the more runs, the less of it. Runs that differ in nothing else have means which differ all the same,
    by the same noise. What they differ by beyond it is the runs' own spread, and that alone is added:
    max(0, variance between run means - run-by-document variance / documents) / runs, of each side that has several.
    One run says nothing of such a spread: the interval of single runs holds for those runs.

    Args:
        by_task: of each task the scores before and after, each [documents] or [runs, documents]; the runs of one model
            are the same ones in every task, and documents stand in one order.

    Raises:
        ValueError: no tasks, a task without documents, scores of different documents, or tasks of different runs.
    """
    pairs = as_pairs(by_task)
    differences = [after.mean(0) - before.mean(0) for before, after in pairs]
    difference = float(np.mean([each.mean() for each in differences]))
    # Of a single document the spread is unknown: it is taken to be as large as the difference itself.
    variances = [each.var(ddof=1) if len(each) > 1 else float(each[0]) ** 2 for each in differences]
    parts = [v / len(each) / len(pairs) ** 2 for v, each in zip(variances, differences, strict=True)]
    documents = float(sum(parts))
    freedom = _freedom([(part, max(1, len(each) - 1)) for part, each in zip(parts, differences, strict=True)])
    own = [_spread_of_runs([pair[side] for pair in pairs]) for side in (0, 1)]
    runs = sum(spread for spread, _, _ in own)
    of_runs = [(total, degrees) for spread, total, degrees in own if spread > 0]
    shares = [*of_runs, (documents, freedom)]
    total = documents + runs
    uncertain = sum(part**2 / degrees for part, degrees in shares)
    return Estimate(
        difference=difference,
        documents=documents,
        runs=runs,
        per_document=float(sum(variances)) / len(pairs) ** 2,
        freedom=min(CERTAIN, total**2 / uncertain) if uncertain > 0 else CERTAIN,
        freedom_of_documents=freedom,
        freedom_of_runs=_freedom(of_runs),
    )


def as_pairs(by_task: Paired) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each task the scores before and after, each [runs, documents].

    Raises:
        ValueError: as of `estimate`.
    """
    if not by_task:
        raise ValueError("no tasks to compare")
    pairs = [same_documents(*(np.atleast_2d(np.asarray(side, float)) for side in pair)) for pair in by_task.values()]
    if len({(len(before), len(after)) for before, after in pairs}) > 1:
        raise ValueError("tasks were scored by different numbers of runs")
    return pairs


def same_documents(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both, as they are.

    Raises:
        ValueError: their last dimension, the documents, differs or is empty.
    """
    if before.shape[-1] != after.shape[-1] or not before.shape[-1]:
        raise ValueError(f"paired scores of {before.shape[-1]} and {after.shape[-1]} documents")
    return before, after


def _spread_of_runs(tables: list[np.ndarray]) -> tuple[float, float, int]:
    """Of the mean over runs the variance that is the runs' own, all that run means show, and degrees of freedom.

    Args:
        tables: of each task [runs, documents].
    """
    runs = len(tables[0])
    if runs == 1:
        return 0.0, 0.0, 1
    between = (sum(table.mean(1) for table in tables) / len(tables)).var(ddof=1)
    noise = 0.0
    for table in tables:
        residual = table - table.mean(0) - table.mean(1)[:, None] + table.mean()
        degrees = (runs - 1) * max(1, table.shape[1] - 1)
        noise += (residual**2).sum() / degrees / table.shape[1] / len(tables) ** 2
    own = between - noise
    return (float(own / runs) if own > NOTHING**2 else 0.0), float(between / runs), runs - 1


def _freedom(parts: list[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of variances, each with its own (Welch 1947, Satterthwaite 1946)."""
    uncertain = sum(part**2 / degrees for part, degrees in parts)
    return min(CERTAIN, sum(part for part, _ in parts) ** 2 / uncertain) if uncertain > 0 else CERTAIN
