"""Whether a model is as good as the dense one in LLM-KICK's sense: it keeps 95 % of its score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from idp.stats.power import LEVEL
from idp.stats.significance import paired_interval, unseen
from idp.stats.variance import ROUNDING, Paired, estimate

KEEPS = 0.95  # "matching" is a score within 5 % of dense's: LLM-KICK, arXiv 2310.01382
MATCHES, DOES_NOT_MATCH, UNDECIDED, AT_CHANCE = "matches", "does not match", "undecided", "dense is at chance"


def matching(by_task: Paired, chance: Mapping[str, float] | None = None) -> dict[str, Any]:
    """LLM-KICK's verdict on a model, which is that of the two scores alone, and the one that heeds their interval.

    A model that is better than dense matches it.

    Args:
        by_task: of each task the scores of dense and of the model, [documents] or [runs, documents] each, the greater
            the better and 0 the least.
        chance: of each task the score of a guess; 0 where it is not named.

    Returns:
        JSON: `ratio` of the model's mean over tasks to dense's and its 95 % `interval` (both None where dense scores 0;
        the interval also where dense cannot be told from 0); `verdict` by the ratio alone (None where there is none);
        and `ours`: "matches" or "does not match" where the whole interval says so, else "undecided"; "dense is at
        chance" where dense cannot be told from a guess, so that nothing that it knows could be lost.

    Raises:
        ValueError: as of `idp.stats.variance.estimate`.
    """
    dense = float(np.mean([np.mean(before) for before, _ in by_task.values()]))
    if dense <= ROUNDING:
        return {"verdict": None, "ratio": None, "interval": None, "ours": AT_CHANCE}
    ratio = float(np.mean([np.mean(after) for _, after in by_task.values()])) / dense
    verdict = MATCHES if ratio >= KEEPS - ROUNDING else DOES_NOT_MATCH
    ours = AT_CHANCE if _at_chance(by_task, chance or {}) else _decided(by_task, dense)
    return {"verdict": verdict, "ratio": ratio, "interval": ratio_interval(by_task, ratio), "ours": ours}


def ratio_interval(by_task: Paired, ratio: float) -> list[float] | None:
    """Fieller's 95 % interval (1954) of a ratio of means: those ratios r at which after - r * before may be 0.

    It is paired over documents, as the variance of after - r * before is. None where it has no end, since the
    denominator cannot be told from 0.

    Args:
        by_task: as for `matching`.
        ratio: the one observed.
    """
    if _combined(by_task, 0.0, 1.0).interval(LEVEL)[0] <= 0:
        return None
    return [_end(by_task, ratio, sign) for sign in (-1, 1)]


def _end(by_task: Paired, ratio: float, sign: int) -> float:
    """Where, going down (-1) or up (1) from the ratio, the interval of after - r * before leaves 0."""
    from scipy.optimize import brentq

    def beyond(r: float) -> float:
        found = _combined(by_task, 1.0, -r)
        return -sign * found.difference - found.quantile(LEVEL / 2)

    step = 0.1
    while beyond(ratio + sign * step) < 0:
        step *= 2
    return float(brentq(beyond, ratio, ratio + sign * step, xtol=1e-9))


def _decided(by_task: Paired, dense: float) -> str:
    """Whether after - 0.95 * before is above or below 0 beyond noise; few documents that all agree decide nothing."""
    found = _combined(by_task, 1.0, -KEEPS)
    low, high = found.interval(LEVEL)
    documents = sum(np.shape(before)[-1] for before, _ in by_task.values())
    if low > -ROUNDING and unseen((1 - KEEPS) * dense, documents) < LEVEL / 2:
        return MATCHES
    return DOES_NOT_MATCH if high < -ROUNDING else UNDECIDED


def _at_chance(by_task: Paired, chance: Mapping[str, float]) -> bool:
    """Whether dense's score may be that of a guess; where a guess is never right, one right answer is knowledge."""
    if not any(chance.get(task) for task in by_task):
        return False
    above = {task: (np.full(np.shape(before), chance.get(task, 0.0)), before) for task, (before, _) in by_task.items()}
    return paired_interval(above).low <= 0


def _combined(by_task: Paired, of_after: float, of_before: float) -> Any:
    """The estimate of of_after * after + of_before * before."""
    return estimate(
        {
            task: (-of_before * np.asarray(before, float), of_after * np.asarray(after, float))
            for task, (before, after) in by_task.items()
        }
    )
