"""The variance of a paired difference: what documents cause, and what the runs' own spread adds to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Paired = Mapping[str, tuple[np.ndarray, np.ndarray]]
CERTAIN = 1e9  # degrees of freedom of what is known
ROUNDING = 1e-12  # differences below this, and variances below its square, are none
LEAST = 1e-16  # p-values end here


@dataclass(frozen=True)
class Estimate:
    """A difference in the unweighted mean over tasks, and the two parts of its variance.

    `documents` is the variance that the choice of documents causes, the noise that runs have on each document among it;
    `runs` what the runs' own spread adds. Each has its degrees of freedom. `per_document` is the first part where every
    task had a single document: of n documents each it is `per_document / n`. `between` is the variance of the mean over
    runs as the runs' means differ, and `noise` what it is by noise alone: `runs` is the rest of it, if there is any.
    """

    difference: float
    documents: float
    runs: float
    per_document: float
    between: float
    noise: float
    freedom_of_documents: float
    freedom_of_runs: float

    def interval(self, level: float) -> tuple[float, float]:
        """The interval around the difference that leaves out `level`."""
        half = self.quantile(level / 2)
        return self.difference - half, self.difference + half

    def quantile(self, tail: float) -> float:
        """By how much the difference exceeds the true one in a share of `tail` of all studies, at most 0.5.

        The squares of each part's own t limits are added, as Howe (1974) adds those of two independent means. A single
        t with Welch and Satterthwaite's degrees of freedom is too narrow for a few runs that differ much, since the
        variance and its degrees of freedom are then both taken from the same poor estimate.
        """
        from scipy.special import stdtrit

        documents = self.documents * stdtrit(self.freedom_of_documents, tail) ** 2
        runs = self.runs * stdtrit(self.freedom_of_runs, tail) ** 2 if self.runs else 0.0
        return float(documents + runs) ** 0.5

    def above(self, bound: float = 0.0) -> float:
        """One-sided p-value of the hypothesis that the true difference is `bound` or less."""
        return self._tail(self.difference - bound)

    def below(self, bound: float = 0.0) -> float:
        """One-sided p-value of the hypothesis that the true difference is `bound` or more."""
        return self._tail(bound - self.difference)

    def two_sided(self) -> float:
        """The p-value of no difference: below a level where, and only where, that level's interval excludes 0."""
        return 2 * min(self.above(), self.below())

    def _tail(self, beyond: float) -> float:
        """The share whose `quantile` is `beyond`."""
        from scipy.special import stdtr

        if beyond < 0:
            return 1 - self._tail(-beyond)
        if self.documents + self.runs < ROUNDING**2:
            return 0.5 if beyond < ROUNDING else 0.0
        if not self.runs:
            return float(stdtr(self.freedom_of_documents, -beyond / self.documents**0.5))
        least, most = np.log(LEAST), np.log(0.5)
        for _ in range(50):
            middle = (least + most) / 2
            least, most = (least, middle) if self.quantile(np.exp(middle)) < beyond else (middle, most)
        return float(np.exp(most))


def estimate(by_task: Paired) -> Estimate:
    """The difference after - before in the unweighted mean over tasks, with its variance.

    The documents' variance is that of the differences between the means over runs, so it holds what runs and documents
    do together: the more runs, the less of it. Runs that differ in nothing else have means which differ all the same,
    by the same noise. What they differ by beyond it is the runs' own spread, and that alone is added: the sum over
    sides of (variance between run means - run-by-document variance / documents) / runs, if that is above 0. A single
    run says nothing of such a spread: its interval holds for that run, and two say little.

    Args:
        by_task: of each task the scores before and after, each [documents] or [runs, documents]; the runs of one model
            are the same ones in every task, and documents stand in one order.

    Raises:
        ValueError: no tasks, a task without documents, scores of different documents, or tasks of different runs.
    """
    pairs = as_pairs(by_task)
    differences = [after.mean(0) - before.mean(0) for before, after in pairs]
    # Of a single document the spread is unknown: it is taken to be as large as the difference itself.
    variances = [float(each.var(ddof=1) if len(each) > 1 else each[0] ** 2) for each in differences]
    counts = [len(each) for each in differences]
    parts = [variance / count / len(pairs) ** 2 for variance, count in zip(variances, counts, strict=True)]
    spreads = [_spread([pair[side] for pair in pairs]) for side in (0, 1) if len(pairs[0][side]) > 1]
    noise = sum(noise for _, noise, _ in spreads)
    between = sum(between for between, _, _ in spreads)
    excess = between - noise
    return Estimate(
        difference=float(np.mean([each.mean() for each in differences])),
        documents=sum(parts),
        runs=excess if excess > ROUNDING**2 else 0.0,
        per_document=sum(variances) / len(pairs) ** 2,
        between=between,
        noise=noise,
        freedom_of_documents=_freedom(parts, [max(1, count - 1) for count in counts]),
        freedom_of_runs=_freedom([between for between, _, _ in spreads], [degrees for _, _, degrees in spreads]),
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


def _spread(tables: Sequence[np.ndarray]) -> tuple[float, float, int]:
    """The variance of the mean of several runs: as their means differ, as noise alone has it, and degrees of freedom.

    Args:
        tables: of each task [runs, documents].
    """
    runs = len(tables[0])
    between = float(np.mean([table.mean(1) for table in tables], axis=0).var(ddof=1))
    noise = 0.0  # of a run's mean over tasks, from what is left of each table without its rows' and columns' means
    for table in tables:
        documents = table.shape[1]
        left = table - table.mean(0) - table.mean(1)[:, None] + table.mean()
        if documents > 1:
            noise += float((left**2).sum()) / (runs - 1) / (documents - 1) / documents / len(tables) ** 2
    return between / runs, noise / runs, runs - 1


def _freedom(parts: Sequence[float], degrees: Sequence[float]) -> float:
    """Degrees of freedom of a sum of variances (Welch, 1947; Satterthwaite, 1946)."""
    uncertain = sum(part**2 / each for part, each in zip(parts, degrees, strict=True))
    return min(CERTAIN, sum(parts) ** 2 / uncertain) if uncertain > 0 else CERTAIN
