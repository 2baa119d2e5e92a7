"""What a comparison could have found: the least difference that it detects, and the documents that would decide."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from idp.stats.variance import CERTAIN, Estimate

LEVEL, POWER = 0.05, 0.8
MOST_DOCUMENTS = 10**9
MCNEMAR_FLIPS = 7.9  # expected flips, all one way, that bring six in 80 %: the fewest at which McNemar's test rejects
SPREADS = (np.arange(32) + 0.5) / 32  # of the variance between runs: the shares below it at which power is computed


def detectable(found: Estimate, level: float = LEVEL, mcnemar: int | None = None) -> float | None:
    """The least true difference that so many documents, tasks and runs detect with 80 %, two-sided at `level`.

    Args:
        found: whose observed variance it is computed from: for single runs' hits that is the share of flips.
        level: of the test.
        mcnemar: documents, where the test is McNemar's exact one: it needs about one flip more, and six at least.

    Returns:
        None where nothing differs at all, so that there is no variance to compute with.
    """
    plan = _plan(found, level)
    few, many = 0.0, float(plan.widths.max()) + 6 * plan.error
    while many - few > 1e-4 * many:
        middle = (few + many) / 2
        few, many = (few, middle) if plan.power(middle) >= POWER else (middle, many)
    if mcnemar:
        return max(many + 1 / mcnemar, min(1.0, MCNEMAR_FLIPS / mcnemar))
    return many or None


def documents_to_decide(found: Estimate, level: float = LEVEL, mcnemar: bool = False) -> int | None:
    """Of each task, how many documents would detect the observed difference with 80 %, two-sided at `level`.

    Args:
        found: the difference.
        level: of the test.
        mcnemar: whether that is McNemar's exact one.

    Returns:
        None where no number would: no difference, or runs that differ too much among themselves.
    """
    if found.difference == 0 or not found.per_document > 0:
        return None

    def enough(documents: float) -> bool:
        plan = _plan(found, level, fewer=found.per_document / documents / found.documents)
        return plan.power(abs(found.difference) - mcnemar / documents) >= POWER

    if not enough(MOST_DOCUMENTS):
        return None
    few, many = 0.0, math.log(MOST_DOCUMENTS)
    while many - few > 1e-4:
        middle = (few + many) / 2
        few, many = (few, middle) if enough(math.exp(middle)) else (middle, many)
    return math.ceil(math.exp(many))


def power(found: Estimate, true: float, level: float = LEVEL) -> float:
    """The chance that a study as this one detects a true difference, two-sided at `level`.

    Args:
        found: the study, by whose variance it is planned.
        true: the difference, above 0.
        level: of the test.
    """
    return _plan(found, level).power(true)


@dataclass(frozen=True)
class _Plan:
    """Studies to come: the standard error of their differences, and half the widths that their intervals have."""

    error: float
    freedom: float
    widths: np.ndarray  # of equal weight each

    def power(self, true: float) -> float:
        """The share of them that detects a true difference."""
        from scipy.special import stdtr

        if not self.error > 0:
            return float(true > 0)
        return float(stdtr(self.freedom, (true - self.widths) / self.error).mean())


def _plan(found: Estimate, level: float, fewer: float | None = None) -> _Plan:
    """Studies of the variance that was observed, whose intervals are as wide as their own few runs happen to differ.

    Of few runs the observed variance is below the true one more often than not. For a plan it is raised so that it is
    not: by what makes it the true one's median.

    Args:
        found: what was observed.
        level: of their tests.
        fewer: the variance that documents cause, as a share of what it was; it is known well then.
    """
    from scipy.special import chdtri, stdtrit

    documents, noise = (part * (1.0 if fewer is None else fewer) for part in (found.documents, found.noise))
    freedom = found.freedom_of_documents if fewer is None else CERTAIN
    runs = max(0.0, found.between * found.freedom_of_runs / chdtri(found.freedom_of_runs, 0.5) - found.noise)
    widths = np.array([documents * stdtrit(freedom, level / 2) ** 2])
    if runs + noise > 0:
        drawn = np.maximum(0.0, (runs + noise) * _shares(found.freedom_of_runs) - noise)
        widths = widths + drawn * stdtrit(found.freedom_of_runs, level / 2) ** 2
    return _Plan(float((documents + runs) ** 0.5), freedom, widths**0.5)


@functools.lru_cache(maxsize=64)
def _shares(freedom: float) -> np.ndarray:
    """What an estimated variance is of the true one, at each of `SPREADS`."""
    from scipy.special import chdtri

    return chdtri(freedom, SPREADS) / freedom
