"""What a comparison could have found: the least difference that it detects, and the documents that would decide."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from idp.analyze.variance import CERTAIN, Estimate

LEVEL, POWER = 0.05, 0.8
MOST_DOCUMENTS = 10**9
MCNEMAR_FLIPS = 7.9  # expected flips, all one way, that bring six in 80 %: the fewest at which McNemar's test rejects
SPREADS = (np.arange(64) + 0.5) / 64  # of the variance between runs: the shares below it at which power is computed


def detectable(found: Estimate, level: float = LEVEL, mcnemar: int | None = None) -> float | None:
    """The least true difference that so many documents, tasks and runs detect with 80 %, two-sided at `level`.

    Args:
        found: whose observed variance it is computed from: for single runs' hits that is the share of flips.
        level: of the test.
        mcnemar: documents, where the test is McNemar's exact one: it needs about one flip more, and six at least.

    Returns:
        None where nothing differs at all, so that there is no variance to compute with.
    """
    few, many = 0.0, 1.0
    while power(found, many, level) < POWER:
        few, many = many, 2 * many
    while many - few > 1e-4 * many and many > 1e-9:
        middle = (few + many) / 2
        few, many = (few, middle) if power(found, middle, level) >= POWER else (middle, many)
    least = many if found.documents + found.runs > 0 else 0.0
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
    from scipy.special import chdtri, stdtr, stdtrit

    error = (found.documents + found.runs) ** 0.5
    if not error > 0:
        return float(true > 0)
    between = found.runs + found.noise
    if between > 0:
        drawn = between * chdtri(found.freedom_of_runs, SPREADS) / found.freedom_of_runs
        runs = np.maximum(0.0, drawn - found.noise) * stdtrit(found.freedom_of_runs, level / 2) ** 2
    else:
        runs = np.zeros(1)
    widths = (found.documents * stdtrit(found.freedom_of_documents, level / 2) ** 2 + runs) ** 0.5
    return float(stdtr(found.freedom_of_documents, (true - widths) / error).mean())
