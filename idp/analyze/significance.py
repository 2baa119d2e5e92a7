"""Whether a difference between two models is more than chance: paired tests over the same documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from idp.resampling import RESAMPLES, resampled_means

Paired = Mapping[str, tuple[np.ndarray, np.ndarray]]
LEVEL = 0.05


@dataclass(frozen=True)
class Interval:
    """A difference, its percentile interval, and the p-value of the test that goes with it."""

    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Equivalence(Interval):
    """The same, of two one-sided tests: `not_worse` and `not_better` are their p-values, `p` the larger one."""

    not_worse: float
    not_better: float


def mcnemar(before: np.ndarray, after: np.ndarray) -> float:
    """McNemar's exact test (1947): the two-sided p-value of as many documents turning right as turning wrong.

    Args:
        before: [documents], whether one model gets a document right.
        after: [documents], whether the other does.
    """
    from scipy.stats import binomtest

    before, after = _same_documents(np.asarray(before, dtype=bool), np.asarray(after, dtype=bool))
    gained, lost = int((~before & after).sum()), int((before & ~after).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def paired_bootstrap(by_task: Paired, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL) -> Interval:
    """By how much one model is better than another in the unweighted mean over tasks; the interval is 95 % wide.

    Each resample draws every task's documents anew, the same ones for both models. Where a model has several runs, it
    draws among those as well, one fewer than there are: so many give the mean over runs its right variance (drawing
    all of k would understate it by the share 1/k). A single run says nothing of the spread between runs, and two or
    three say little.

    Args:
        by_task: of each task the scores before and after, each [documents] or [runs, documents]; the runs of one model
            are the same ones in every task, and documents stand in one order.
        resamples: how many.
        seed: of the draws.
        level: what the interval leaves out.

    Returns:
        after - before. p is two-sided, for no difference.

    Raises:
        ValueError: no tasks, a task without documents, scores of different documents, or tasks of different runs.
    """
    difference, drawn = _differences(by_task, resamples, seed)
    low, high = np.quantile(drawn, [level / 2, 1 - level / 2])
    return Interval(difference, float(low), float(high), two_sided(drawn))


def t_test(by_task: Paired) -> float:
    """Two-sided p-value of no difference in the unweighted mean over tasks, paired over documents.

    The variance is that of the mean over documents, and where a side has several runs that of the mean over those;
    degrees of freedom as by Welch and Satterthwaite. A bootstrap's p-values cannot get below one in the number of its
    resamples, which is not enough for a table of hundreds of rows that are adjusted together.

    Args:
        by_task: as for `paired_bootstrap`.
    """
    from scipy.stats import t

    pairs = _pairs(by_task)
    differences = [after.mean(0) - before.mean(0) for before, after in pairs]
    difference = sum(each.mean() for each in differences) / len(pairs)
    parts = [(each.var(ddof=1) / len(each) / len(pairs) ** 2, len(each) - 1) for each in differences if len(each) > 1]
    for side in (0, 1):
        runs = sum(pair[side].mean(1) for pair in pairs) / len(pairs)
        if len(runs) > 1:
            parts.append((runs.var(ddof=1) / len(runs), len(runs) - 1))
    variance = sum(part for part, _ in parts)
    if not variance > 0:
        return 1.0 if abs(difference) < 1e-9 else 0.0
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    return float(2 * t.sf(abs(difference) / variance**0.5, freedom))


def task_test(before: np.ndarray, after: np.ndarray) -> tuple[float, str]:
    """The p-value of one task's difference, and the test's name: McNemar's for single runs' answers, else `t_test`.

    Args:
        before: scores of one model, [runs, documents].
        after: of the other, on the same documents.
    """
    if len(before) == len(after) == 1 and np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all():
        return mcnemar(before[0] == 1, after[0] == 1), "mcnemar"
    return t_test({"task": (before, after)}), "t_test"


def equivalence(
    by_task: Paired, margin: float, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Equivalence:
    """Whether two models differ by less than `margin` either way: two one-sided tests (Schuirmann, 1987).

    A difference that is not significant is no evidence of there being none; this test asks for such evidence.

    Args:
        by_task: as for `paired_bootstrap`, as is the rest.
        margin: the largest difference that still counts as none, in units of the scores.

    Returns:
        after - before. The interval is 90 % wide: it lies within the margin where p < 0.05, unless there are too few
        documents (see `unseen`). `not_worse` alone is the test of non-inferiority.
    """
    difference, drawn = _differences(by_task, resamples, seed)
    low, high = np.quantile(drawn, [level, 1 - level])
    least = unseen(margin, sum(np.shape(before)[-1] for before, _ in by_task.values()))
    worse, better = (max(least, _tail(beyond)) for beyond in (drawn <= -margin, drawn >= margin))
    return Equivalence(difference, float(low), float(high), max(worse, better), worse, better)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979) of p-values that are read together, in the order given.

    Each adjusted value may be held against the level itself: the chance of one false discovery or more among all of
    them stays below it, however they depend on one another.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return adjusted.tolist()


def unseen(margin: float, documents: int) -> float:
    """The chance that none of so many documents differs, though a share of `margin` does.

    A bootstrap resamples what it has seen: eight documents on which two models agree give an interval of no width.
    Where this chance is not small, they rule out nothing.
    """
    return (1 - margin) ** documents


def two_sided(drawn: np.ndarray) -> float:
    """The p-value of no difference, from resampled differences."""
    return min(1.0, 2 * min(_tail(drawn <= 0), _tail(drawn >= 0)))


def run_weights(runs: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Of each resample, the share of each run among those drawn (one fewer than there are), [resamples, runs]."""
    drawn = max(1, runs - 1)
    return generator.multinomial(drawn, np.full(runs, 1 / runs), size=resamples) / drawn


def _differences(by_task: Paired, resamples: int, seed: int) -> tuple[float, np.ndarray]:
    """The difference, and that of each resample, [resamples]."""
    pairs = _pairs(by_task)
    first, second = (len(side) for side in pairs[0])
    generator = np.random.default_rng(seed)
    means = resampled_means([np.concatenate(pair).T for pair in pairs], generator, resamples)
    before, after = (
        (means[:, part] * run_weights(count, resamples, generator)).sum(1)
        for part, count in ((slice(first), first), (slice(first, None), second))
    )
    difference = np.mean([after.mean() - before.mean() for before, after in pairs])
    return float(difference), (after - before).round(12)  # so that equal means differ by 0, not by their rounding


def _pairs(by_task: Paired) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each task the scores before and after, each [runs, documents]."""
    if not by_task:
        raise ValueError("no tasks to compare")
    pairs = [_same_documents(*(np.atleast_2d(np.asarray(side, float)) for side in pair)) for pair in by_task.values()]
    if len({(len(before), len(after)) for before, after in pairs}) > 1:
        raise ValueError("tasks were scored by different numbers of runs")
    return pairs


def _tail(beyond: np.ndarray) -> float:
    """The share of resamples beyond a bound, never 0: what was seen counts as one of them."""
    return float((beyond.sum() + 1) / (len(beyond) + 1))


def _same_documents(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if before.shape[-1] != after.shape[-1] or not before.shape[-1]:
        raise ValueError(f"paired scores of {before.shape[-1]} and {after.shape[-1]} documents")
    return before, after
