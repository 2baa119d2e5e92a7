"""How far an oracle leads by luck alone: what equal prompts would give it.

An oracle takes each document's best prompt after the fact, and so it leads the mean prompt even where all are equal:
it picks the luckiest of m draws. Of equal prompts each document has one chance c of being right, whatever the prompt,
and what they make of it are independent draws. m of them lead the mean by E[1 - (1 - c)^m - c], and two of them differ
on d = 2 E[c (1 - c)] of the documents. For m = 2 the lead is d / 2, whatever c is. For more it depends on where the
flips lie, and there are two models of it, of which the one that fits better is taken:

- `toss`: a document is certain, or a toss of a coin (c = 1/2): the lead is 2 d (1/2 - 2^-m).
- `spread`: c follows a Beta distribution with the mean and the flips that were seen. So it does, nearly, where every
  prompt moves a document's score by noise of its own, whatever the documents' scores are.

Both see the prompts' outcomes only through how many are right on a document, so prompts need not be equally good, nor
every two of them differ equally often. Where prompts are opposed (they differ on more documents than if documents did
not differ at all), c is the same for all documents: `opposed`. Graded scores have no c: there the lead is half the
range from the worst to the best prompt (`range`), which holds for any noise that is symmetric.

What none of it can tell: hard documents that each prompt has right now and then by a guess look like documents that one
prompt alone can do. `python -m idp.analyze choice` asks other documents' answers instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TOSS, SPREAD, OPPOSED, RANGE = "toss", "spread", "opposed", "range"
CLEARLY = 2.0  # standard errors by which prompts must be opposed
STEP = 1e-4  # of the numerical derivatives


@dataclass(frozen=True)
class Luck:
    """An oracle's lead over the mean prompt on one task, and what of it luck explains.

    `beyond` is what each document adds to the lead beyond luck, [documents], so that its mean is `lead - expected` and
    its spread that figure's, the uncertainty of what was expected included.
    """

    lead: float
    expected: float
    flips: float | None  # documents on which two prompts differ, as a mean over pairs; None for graded scores
    model: str  # toss, spread, opposed, range
    beyond: np.ndarray


def luck(tasks: Sequence[np.ndarray]) -> list[Luck]:
    """What luck explains of an oracle's lead, of each task; one model is taken for all of them.

    Args:
        tasks: of each [documents, prompts], what each prompt scored, the greater the better.
    """
    hits = [np.asarray(scores, float) for scores in tasks if _right_or_wrong(scores)]
    model = _model(hits) if hits else RANGE
    return [
        _of_hits(np.asarray(scores, float), model) if _right_or_wrong(scores) else _of_range(scores) for scores in tasks
    ]


def lead_of_equals(mean: float, flips: float, prompts: int, model: str) -> float:
    """By how much an oracle leads the mean of equal prompts.

    Args:
        mean: of their scores.
        flips: documents on which two of them differ.
        prompts: how many.
        model: toss, spread or opposed.
    """
    if model == TOSS:
        return 2 * flips * (0.5 - 0.5**prompts)
    wrong = float(np.exp(_log_chances(mean, flips, prompts, model)[0]))
    return 1 - wrong - mean


def _of_hits(scores: np.ndarray, model: str) -> Luck:
    m = scores.shape[1]
    each, flipped = scores.mean(1), _flips(scores)
    mean, flips, lead = each.mean(), flipped.mean(), scores.max(1) - each
    expected = lead_of_equals(mean, flips, m, model)

    def slope(by_mean: float, by_flips: float) -> float:
        ends = [
            lead_of_equals(min(max(mean + sign * by_mean, 0), 1), max(flips + sign * by_flips, 0), m, model)
            for sign in (1, -1)
        ]
        return (ends[0] - ends[1]) / (2 * STEP)

    explained = expected
    if 0 < mean < 1 and flips > STEP:
        explained = expected + slope(STEP, 0) * (each - mean) + slope(0, STEP) * (flipped - flips)
    return Luck(float(lead.mean()), float(expected), float(flips), model, lead - explained)


def _of_range(scores: np.ndarray) -> Luck:
    scores = np.asarray(scores, float)
    lead, half = scores.max(1) - scores.mean(1), np.ptp(scores, axis=1) / 2
    return Luck(float(lead.mean()), float(half.mean()), None, RANGE, lead - half)


def _model(tasks: Sequence[np.ndarray]) -> str:
    """The model under which the counts of right prompts are likelier, all tasks together."""
    opposed, variance, likelihoods = 0.0, 0.0, {TOSS: 0.0, SPREAD: 0.0}
    for scores in tasks:
        m, each, flipped = scores.shape[1], scores.mean(1), _flips(scores)
        mean, flips = each.mean(), flipped.mean()
        beyond = flipped - 2 * mean * (1 - mean) - 2 * (1 - 2 * mean) * (each - mean)
        opposed += beyond.mean()
        variance += beyond.var() / len(beyond)
        counts = np.bincount(scores.sum(1).astype(int), minlength=m + 1)
        for model in likelihoods:
            with np.errstate(divide="ignore"):
                logs = _log_chances(mean, flips, m, model)
            likelihoods[model] += float((counts[counts > 0] * logs[counts > 0]).sum())
    if opposed > CLEARLY * variance**0.5 and opposed > 1e-9:
        return OPPOSED
    return SPREAD if likelihoods[SPREAD] > likelihoods[TOSS] + 1e-9 else TOSS


def _log_chances(mean: float, flips: float, m: int, model: str) -> np.ndarray:
    """Log probability of each number of right prompts, from 0 to m."""
    from scipy.special import betaln, gammaln, xlog1py, xlogy

    k = np.arange(m + 1)
    ways = gammaln(m + 1) - gammaln(k + 1) - gammaln(m - k + 1)
    alike = 2 * mean * (1 - mean)  # flips of prompts that have nothing in common
    if model == TOSS:
        tossed = 2 * flips
        chances = tossed * np.exp(ways) / 2**m
        certain = 1 - mean - tossed / 2, mean - tossed / 2  # wrong, and right
        if min(certain) < -1e-9:
            return np.full(m + 1, -np.inf)  # no tosses have so many flips with such a mean
        chances[0] += certain[0]
        chances[m] += certain[1]
        with np.errstate(divide="ignore"):
            return np.log(np.maximum(chances, 0))
    together = 1 - flips / alike if alike > 0 else 1.0  # correlation of two prompts' outcomes
    if model == OPPOSED or abs(together) < 1e-6:
        return ways + xlogy(k, mean) + xlog1py(m - k, -mean)
    if together > 1 - 1e-9:
        with np.errstate(divide="ignore"):
            return np.log(np.where(k == 0, 1 - mean, np.where(k == m, mean, 0.0)))
    size = (1 - together) / together
    if together > 0:
        a, b = mean * size, (1 - mean) * size
        return ways + betaln(a + k, b + m - k) - betaln(a, b)
    # A little below 0 by chance: the same polynomial in the moments, which has a meaning up to here.
    size = min(size, -2.0 * m)
    return (
        ways
        + np.array([_log_product(mean * size, i) + _log_product((1 - mean) * size, m - i) for i in map(int, k)])
        - (_log_product(size, m))
    )


def _log_product(start: float, terms: int) -> float:
    """Log of |start (start + 1) ... (start + terms - 1)|; the signs cancel out where `size` is far below 0."""
    return float(np.log(np.abs(start + np.arange(terms)) + 1e-300).sum())


def _flips(scores: np.ndarray) -> np.ndarray:
    """Of each document the share of pairs of prompts of which one is right and one is wrong."""
    m, right = scores.shape[1], scores.sum(1)
    return 2 * right * (m - right) / (m * (m - 1)) if m > 1 else np.zeros(len(scores))


def _right_or_wrong(scores: np.ndarray) -> bool:
    return bool(np.isin(scores, (0, 1)).all())
