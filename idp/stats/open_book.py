"""The same questions without and with their passage: whether knowledge is lost, or reading."""

from __future__ import annotations

from typing import Any

import numpy as np

from idp.stats.matching import ratio_interval
from idp.stats.power import LEVEL
from idp.stats.significance import comparison
from idp.stats.variance import ROUNDING, estimate

KNOWLEDGE, READING, UNDECIDED = "knowledge", "reading", "undecided"

Book = tuple[np.ndarray, np.ndarray]  # scores of one model and of another on each question, [questions]


def open_book(closed: Book, with_passage: Book) -> dict[str, Any]:
    """What becomes of the answers that a model knows, and of those that it reads, from one model to another.

    Args:
        closed: scores before and after, without the passage; [questions] each, 0 to 1.
        with_passage: the same questions in the same order, with it.

    Returns:
        JSON: `closed` and `open`, each the test of after - before as `idp.stats.significance.comparison` gives it,
        with `kept` (after / before; None where before is 0) and its 95 % `kept_interval`; `difference`, that of the two
        changes (open - closed) question by question, as a test; `kept_difference`: open's share kept minus closed's,
        and its 95 % interval `low` to `high`, None where a share is; and `worse`: which of the two fares worse by its
        share, "knowledge" (closed) or "reading" (open), where that interval excludes 0, else "undecided".

    Raises:
        ValueError: as of `idp.stats.variance.estimate`.
    """
    sides = {"closed": closed, "open": with_passage}
    found: dict[str, Any] = {side: _change(*pair) for side, pair in sides.items()}
    changes = {side: np.asarray(after, float) - np.asarray(before, float) for side, (before, after) in sides.items()}
    found["difference"] = _test(changes["closed"], changes["open"])
    found["kept_difference"] = shares = _kept_difference(closed, with_passage)
    found["worse"] = UNDECIDED
    if shares is not None and (shares["low"] > 0 or shares["high"] < 0):
        found["worse"] = KNOWLEDGE if shares["low"] > 0 else READING
    return found


def _change(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    mean = float(np.mean(before))
    kept = float(np.mean(after)) / mean if mean > ROUNDING else None
    interval = ratio_interval({"questions": (before, after)}, kept) if kept is not None else None
    return {**_test(before, after), "kept": kept, "kept_interval": interval}


def _test(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    return comparison({"questions": (before, after)})["mean"]


def _kept_difference(closed: Book, with_passage: Book) -> dict[str, float] | None:
    """Open's share kept minus closed's, with the interval of the delta method: both ratios, linear in their means.

    None where the dense score behind a share cannot be told from 0: there the method does not hold.
    """
    terms, shares = [], []
    for before, after in (closed, with_passage):
        before, after = np.asarray(before, float), np.asarray(after, float)
        if before.mean() <= ROUNDING:
            return None
        kept = after.mean() / before.mean()
        if ratio_interval({"questions": (before, after)}, float(kept)) is None:
            return None
        shares.append(kept)
        terms.append((after - kept * before) / before.mean())
    found = estimate({"questions": (terms[0], terms[1])})
    half = found.interval(LEVEL)[1] - found.difference
    difference = float(shares[1] - shares[0])
    return {"difference": difference, "low": difference - half, "high": difference + half}
