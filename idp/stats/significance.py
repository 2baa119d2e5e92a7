"""Whether a difference between two models is more than chance: paired tests over the same documents.

Interval, p-value and equivalence of a difference all come from one distribution (`idp.stats.variance`), so that an
interval excludes 0 where, and only where, p is below the level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from idp.stats.power import LEVEL, detectable, documents_to_decide
from idp.stats.variance import Estimate, Paired, as_pairs, estimate, same_documents


@dataclass(frozen=True)
class Interval:
    """A difference, its interval, and the p-value of the test that goes with it.

    `detectable` and `documents_to_decide` as of `comparison`, where they are known.
    """

    difference: float
    low: float
    high: float
    p: float
    detectable: float | None = field(default=None, kw_only=True)
    documents_to_decide: int | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Equivalence(Interval):
    """The same, of two one-sided tests: `not_worse` and `not_better` are their p-values, `p` the larger one."""

    not_worse: float
    not_better: float


def comparison(by_task: Paired, graded: Paired | None = None) -> dict[str, Any]:
    """One model against another, as JSON: the mean over tasks, each task, and the same of the graded outcome.

    Each test has the `difference` after - before, its 95 % interval `low` to `high`, and `p`; `detectable`, the least
    true difference that so many documents, tasks and runs detect with 80 % at 5 % (two-sided), from the variance that
    was observed, None where nothing differs; `documents`; and `documents_to_decide`: of each task, how many would
    detect the observed difference with 80 %, None where it is decided, or where no number would (no difference, or
    runs that differ too much among themselves). That of a task has the `test` (mcnemar or t_test) as well, and how many
    documents were `gained` and `lost`: right in the model after alone, and before alone, as means over pairs of runs;
    None where outcomes are not right or wrong.

    Args:
        by_task: of each task the scores before and after, [documents] or [runs, documents] each, greater is better.
        graded: the same documents' graded outcomes (`idp.records.outcomes.graded_outcomes`), of tasks that have them.

    Returns:
        `mean`, `tasks`, `runs` (of the model before, and after), and `graded`: its `mean` and `tasks`, or None.

    Raises:
        ValueError: as of `idp.stats.variance.estimate`.
    """
    first = as_pairs(by_task)[0]
    return {
        **_tests(by_task),
        "runs": [len(first[0]), len(first[1])],
        "graded": _tests(graded) if graded else None,
    }


def mcnemar(before: np.ndarray, after: np.ndarray) -> float:
    """McNemar's exact test (1947): the two-sided p-value of as many documents turning right as turning wrong.

    Args:
        before: [documents], whether one model gets a document right.
        after: [documents], whether the other does.
    """
    from scipy.special import bdtr

    before, after = same_documents(np.asarray(before, dtype=bool), np.asarray(after, dtype=bool))
    gained, lost = int((~before & after).sum()), int((before & ~after).sum())
    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def paired_interval(by_task: Paired, level: float = LEVEL) -> Interval:
    """By how much one model is better than another in the unweighted mean over tasks; the interval is 95 % wide.

    Args:
        by_task: of each task the scores before and after, each [documents] or [runs, documents].
        level: what the interval leaves out.

    Returns:
        after - before. p is two-sided, for no difference.

    Raises:
        ValueError: as of `idp.stats.variance.estimate`.
    """
    found = estimate(by_task)
    low, high = found.interval(level)
    p = found.two_sided()
    return Interval(
        found.difference,
        low,
        high,
        p,
        detectable=detectable(found),
        documents_to_decide=documents_to_decide(found) if p >= LEVEL else None,
    )


def t_test(by_task: Paired) -> float:
    """Two-sided p-value of no difference in the unweighted mean over tasks: that of `paired_interval`."""
    return estimate(by_task).two_sided()


def task_test(before: np.ndarray, after: np.ndarray) -> tuple[float, str]:
    """The p-value of one task's difference, and the test's name: McNemar's for single runs' answers, else `t_test`.

    Args:
        before: scores of one model, [runs, documents].
        after: of the other, on the same documents.
    """
    if len(before) == len(after) == 1 and _hits(before) and _hits(after):
        return mcnemar(before[0] == 1, after[0] == 1), "mcnemar"
    return t_test({"task": (before, after)}), "t_test"


def equivalence(by_task: Paired, margin: float, level: float = LEVEL) -> Equivalence:
    """Whether two models differ by less than `margin` either way: two one-sided tests (Schuirmann, 1987).

    A difference that is not significant is no evidence of there being none; this test asks for such evidence.

    Args:
        by_task: as for `paired_interval`.
        margin: the largest difference that still counts as none, in units of the scores.
        level: of the tests; the interval leaves out twice as much.

    Returns:
        after - before. The interval is 90 % wide: it lies within the margin where p < 0.05, unless there are too few
        documents (see `unseen`). `not_worse` alone is the test of non-inferiority.
    """
    found = estimate(by_task)
    least = unseen(margin, sum(np.shape(before)[-1] for before, _ in by_task.values()))
    worse, better = max(least, found.above(-margin)), max(least, found.below(margin))
    return Equivalence(found.difference, *found.interval(2 * level), max(worse, better), worse, better)


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

    A variance is computed from what was seen: eight documents on which two models agree give an interval of no width.
    Where this chance is not small, they rule out nothing.
    """
    return (1 - margin) ** documents


def mean_test(by_task: Paired) -> dict[str, Any]:
    """The mean over tasks alone, as in `comparison`: of a group of tasks, say.

    Args:
        by_task: as for `comparison`.
    """
    found = estimate(by_task)
    documents = sum(np.shape(before)[-1] for before, _ in by_task.values())
    return _test(found, found.two_sided(), documents)


def _tests(by_task: Paired) -> dict[str, Any]:
    """The mean over tasks, and each task."""
    return {
        "mean": mean_test(by_task),
        "tasks": {task: _of_task(*as_pairs({task: pair})[0]) for task, pair in by_task.items()},
    }


def _of_task(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    p, test = task_test(before, after)
    documents = before.shape[1]
    exact = documents if test == "mcnemar" else None
    gained = lost = None
    if _hits(before) and _hits(after):
        one, other = before.mean(0), after.mean(0)  # of all pairs of runs: the products are their means
        gained, lost = float(((1 - one) * other).sum()), float((one * (1 - other)).sum())
    found = _test(estimate({"task": (before, after)}), p, documents, exact)
    return {**found, "test": test, "gained": gained, "lost": lost}


def _test(found: Estimate, p: float, documents: int, mcnemar: int | None = None) -> dict[str, Any]:
    low, high = found.interval(LEVEL)
    if p >= LEVEL:  # McNemar's exact test is the more careful one of few documents: the interval must not say more
        low, high = min(low, 0.0), max(high, 0.0)
    return {
        "difference": found.difference,
        "low": low,
        "high": high,
        "p": p,
        "detectable": detectable(found, mcnemar=mcnemar),
        "documents": documents,
        "documents_to_decide": documents_to_decide(found, mcnemar=bool(mcnemar)) if p >= LEVEL else None,
    }


def _hits(scores: np.ndarray) -> bool:
    return bool(np.isin(scores, (0, 1)).all())
