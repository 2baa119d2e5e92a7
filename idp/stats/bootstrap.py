"""The bootstrap over documents, for figures that are no mean of differences, such as the best of several prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES, CHUNK = 10_000, 2**22  # resamples, and counts drawn at a time


def resampled_means(
    tasks: Sequence[np.ndarray], generator: np.random.Generator, resamples: int = RESAMPLES
) -> np.ndarray:
    """Unweighted means over tasks of the means over documents, each task's documents drawn anew with replacement.

    Documents that score alike in every column are interchangeable, so a resample draws how often each kind of document
    occurs (a multinomial) rather than the documents themselves: the same distribution, at a fraction of the cost.

    Args:
        tasks: [documents, columns] of each task: what every run scored on a document, or one paired difference.
        generator: of the draws.
        resamples: how many.

    Returns:
        [resamples, columns].
    """
    means = np.zeros((resamples, tasks[0].shape[1]))
    for table in tasks:
        kinds, counts = np.unique(table, axis=0, return_counts=True)
        rows = max(1, CHUNK // len(kinds))
        for start in range(0, resamples, rows):
            size = min(rows, resamples - start)
            drawn = generator.multinomial(len(table), counts / len(table), size=size)
            means[start : start + size] += drawn @ kinds / len(table) / len(tasks)
    return means
