"""What share of the damage that compression did a repair brings back, where there is damage to speak of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from idp.analyze.significance import LEVEL

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # dense, compressed, repaired


@dataclass(frozen=True)
class Share:
    """(repaired - compressed) / (dense - compressed), and its 95 % interval: 1 is all of it, below 0 more harm."""

    share: float
    low: float
    high: float


def brought_back(by_task: Mapping[str, Rows], level: float = LEVEL) -> Share | None:
    """The share of the damage that a repair brings back, in the unweighted mean over tasks.

    The interval is Fieller's (1954): the shares r for which the mean of repaired - compressed - r (dense - compressed)
    over the same documents differs from 0 by no more than chance. It is bounded exactly where the damage is beyond
    noise, and wide where it is barely so; a standard error of the ratio, or its bootstrap, would hide that.

    Args:
        by_task: of each task what the three models score on the same documents, each [documents], the greater the
            better.
        level: what the interval leaves out, and the level at which damage counts as such.

    Returns:
        None where there is no damage beyond noise, or a task has a single document, which says nothing of noise.
    """
    from scipy.stats import t

    parts = []  # of each task: mean [2] and covariance [2, 2] of the mean of (gain, damage), and degrees of freedom
    for dense, compressed, repaired in by_task.values():
        both = np.stack([repaired, dense]).astype(float) - np.asarray(compressed, float)
        count = both.shape[1]
        if count < 2:
            return None
        parts.append((both.mean(1), np.cov(both) / count, count - 1))
    if not parts:
        return None
    tasks = len(parts)
    gain, damage = sum(mean for mean, _, _ in parts) / tasks
    covariance = sum(each for _, each, _ in parts) / tasks**2
    noise = covariance[1, 1]
    # Degrees of freedom of the damage, by Welch and Satterthwaite.
    spread = sum((each[1, 1] / tasks**2) ** 2 / degrees for _, each, degrees in parts)
    freedom = noise**2 / spread if spread > 0 else sum(degrees for _, _, degrees in parts)
    reach = float(t.ppf(1 - level / 2, freedom))
    a = damage**2 - reach**2 * noise
    if damage <= 0 or a <= 1e-9 * damage**2:
        return None
    b = gain * damage - reach**2 * covariance[0, 1]
    c = gain**2 - reach**2 * covariance[0, 0]
    half = max(0.0, b**2 - a * c) ** 0.5
    return Share(float(gain / damage), float((b - half) / a), float((b + half) / a))


def beyond_noise(damage: Sequence[float], p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Of tasks that are read together, which show damage beyond noise: a loss with a small p-value, adjusted by Holm.

    Args:
        damage: dense - compressed of each.
        p_values: of the tests of no difference.
        level: the chance of naming one wrongly, over all of them.
    """
    from idp.analyze.significance import holm

    adjusted = holm(p_values) if p_values else []
    return [lost > 0 and p < level for lost, p in zip(damage, adjusted, strict=True)]
