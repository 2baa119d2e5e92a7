"""What a comparison could have found: the least difference that it detects, and the documents that would decide."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np

from idp.analyze.variance import CERTAIN, Estimate

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
    error, widths = (found.documents + found.runs) ** 0.5, _widths(found, level)
    few, many = 0.0, float(widths.max()) + 6 * error
    while many - few > 1e-4 * many:
        middle = (few + many) / 2
        few, many = (few, middle) if _power(found, widths, middle) >= POWER else (middle, many)
    least = many
    if mcnemar:
        return max(least + 1 / mcnemar, min(1.0, MCNEMAR_FLIPS / mcnemar))
    return least or None


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
        less = found.per_document / documents / found.documents
        more = replace(  # of so many documents the variance is known well
            found, documents=found.documents * less, noise=found.noise * less, freedom_of_documents=CERTAIN
        )
        return power(more, abs(found.difference) - mcnemar / documents, level) >= POWER

    if not enough(MOST_DOCUMENTS):
        return None
    few, many = 0.0, math.log(MOST_DOCUMENTS)
    while many - few > 1e-4:
        middle = (few + many) / 2
        few, many = (few, middle) if enough(math.exp(middle)) else (middle, many)
    return math.ceil(math.exp(many))


def power(found: Estimate, true: float, level: float = LEVEL) -> float:
    """The chance that a study as this one detects a true difference, two-sided at `level`.

    Its intervals are as wide as the variance between its few runs happens to come out, which is averaged over.

    Args:
        found: the study, with its variance taken for the true one.
        true: the difference, above 0.
        level: of the test.
    """
    return _power(found, _widths(found, level), true)


def _power(found: Estimate, widths: np.ndarray, true: float) -> float:
    from scipy.special import stdtr

    error = (found.documents + found.runs) ** 0.5
    return float(stdtr(found.freedom_of_documents, (true - widths) / error).mean()) if error > 0 else float(true > 0)


def _widths(found: Estimate, level: float) -> np.ndarray:
    """Half the widths that intervals of such studies have, of equal weight each."""
    from scipy.special import stdtrit

    documents = found.documents * stdtrit(found.freedom_of_documents, level / 2) ** 2
    between = found.runs + found.noise
    if not between > 0:
        return np.array([documents**0.5])
    drawn = between * _shares(found.freedom_of_runs)
    runs = np.maximum(0.0, drawn - found.noise) * stdtrit(found.freedom_of_runs, level / 2) ** 2
    return (documents + runs) ** 0.5


@functools.lru_cache(maxsize=64)
def _shares(freedom: float) -> np.ndarray:
    """What an estimated variance is of the true one, at each of `SPREADS`."""
    from scipy.special import chdtri

    return chdtri(freedom, SPREADS) / freedom
