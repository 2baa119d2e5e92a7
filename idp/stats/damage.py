"""What share of the damage that compression did a repair brings back, where there is damage to speak of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from idp.stats.power import LEVEL
from idp.stats.variance import estimate

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # dense, compressed, repaired


@dataclass(frozen=True)
class Share:
    """(repaired - compressed) / (dense - compressed), and its 95 % interval: 1 is all of it, below 0 more harm."""

    share: float
    low: float
    high: float


def brought_back(by_task: Mapping[str, Rows], level: float = LEVEL) -> Share | None:
    """The share of the damage that a repair brings back, in the unweighted mean over tasks.

    The interval is Fieller's (1954). With D, C and R for the three models it holds the shares r for which the interval
    of R - C - r (D - C) has 0 in it. It is bounded exactly where the damage is beyond noise, and wide where it is
    barely so; a standard error of the ratio would hide that. The square of that interval's half is a quadratic form in
    r, which those of the three differences give: its mixed term is half of what (R - C)'s and (D - C)'s are more than
    (R - D)'s. So runs count as they do in differences.

    Args:
        by_task: of each task what the three models score on the same documents, each [documents] or [runs, documents],
            the greater the better.
        level: what the interval leaves out, and the level at which damage counts as such.

    Returns:
        None where there is no damage beyond noise.

    Raises:
        ValueError: as of `idp.stats.variance.estimate`.
    """
    gain = estimate({task: (compressed, repaired) for task, (_, compressed, repaired) in by_task.items()})
    damage = estimate({task: (compressed, dense) for task, (dense, compressed, _) in by_task.items()})
    rest = estimate({task: (dense, repaired) for task, (dense, _, repaired) in by_task.items()})
    of_gain, of_damage, of_rest = (found.quantile(level / 2) ** 2 for found in (gain, damage, rest))
    a = damage.difference**2 - of_damage
    if damage.difference <= 0 or a <= 1e-9 * damage.difference**2:
        return None
    b = gain.difference * damage.difference - (of_gain + of_damage - of_rest) / 2
    c = gain.difference**2 - of_gain
    half = max(0.0, b**2 - a * c) ** 0.5
    return Share(gain.difference / damage.difference, (b - half) / a, (b + half) / a)


def beyond_noise(damage: Sequence[float], p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Of tasks that are read together, which show damage beyond noise: a loss with a small p-value, adjusted by Holm.

    Args:
        damage: dense - compressed of each.
        p_values: of the tests of no difference.
        level: the chance of naming one wrongly, over all of them.
    """
    from idp.stats.significance import holm

    adjusted = holm(p_values) if p_values else []
    return [lost > 0 and p < level for lost, p in zip(damage, adjusted, strict=True)]
