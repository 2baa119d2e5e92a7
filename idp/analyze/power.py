"""What a comparison could have found: the least difference that it detects, and the documents that would decide."""

from __future__ import annotations

import math
from dataclasses import replace

from idp.analyze.variance import CERTAIN, Estimate

LEVEL, POWER = 0.05, 0.8
MOST_DOCUMENTS = 10**9
MCNEMAR_FLIPS = 7.9  # expected one-sided flips with which six or more, the fewest that it rejects at, come in 80 %


def detectable(found: Estimate, level: float = LEVEL, mcnemar: int | None = None) -> float | None:
    """The least true difference that so many documents, tasks and runs detect with 80 %, two-sided at `level`.

    Args:
        found: whose observed variance it is computed from: for single runs' hits that is the share of flips.
        level: of the test.
        mcnemar: documents, where the test is McNemar's exact one: it needs about one flip more, and six at least.

    Returns:
        None where nothing differs at all, so that there is no variance to compute with.
    """
    if not found.variance > 0:
        return MCNEMAR_FLIPS / mcnemar if mcnemar and mcnemar > MCNEMAR_FLIPS else None
    least = _multiple(found.freedom, level) * found.variance**0.5
    return max(least + 1 / mcnemar, min(1.0, MCNEMAR_FLIPS / mcnemar)) if mcnemar else least


def documents_to_decide(found: Estimate, level: float = LEVEL) -> int | None:
    """Of each task, how many documents would detect the observed difference with 80 %, two-sided at `level`.

    Returns:
        None where no number would: no difference, or runs that differ too much among themselves.
    """
    if found.difference == 0 or not found.per_document > 0:
        return None

    def enough(documents: float) -> bool:
        more = replace(found, documents=found.per_document / documents)
        return _multiple(_freedom(more), level) ** 2 * more.variance <= found.difference**2

    if not enough(MOST_DOCUMENTS):
        return None
    few, many = 0.0, math.log(MOST_DOCUMENTS)
    while many - few > 1e-3:
        middle = (few + many) / 2
        few, many = (few, middle) if enough(math.exp(middle)) else (middle, many)
    return math.ceil(math.exp(many))


def _multiple(freedom: float, level: float) -> float:
    """How many standard errors the difference must have."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - level / 2) + stdtrit(freedom, POWER))


def _freedom(found: Estimate) -> float:
    """Degrees of freedom of as many documents as a plan has: their own variance is known well by then."""
    uncertain = found.runs**2 / found.freedom_of_runs
    return min(CERTAIN, found.variance**2 / uncertain) if uncertain > 0 else CERTAIN
