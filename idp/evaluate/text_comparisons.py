"""A run's models held against one another on the same windows of text: what compression cost there, what came back.

The loss of a window differs far less between two models than between two windows, so that a few thousand tokens often
tell models apart where the documents of a small run do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from idp.evaluate.fidelity import WINDOWS

if TYPE_CHECKING:
    import numpy as np

    from idp.evaluate.measured import Measured

FEWEST = 2  # windows, of which a difference has a spread
Losses = dict[str, dict[str, "np.ndarray"]]  # of each text, by the model's row: [windows], less the mean loss of each


def add_texts(comparisons: list[dict[str, Any]], measured: Mapping[str, Measured]) -> None:
    """Adds `texts` to each pair of a run's models, in place: of each text that both were measured on, one test.

    A test has the `difference` in nats per token, above 0 where the model after predicts the text better, `low`,
    `high`, `p`, and how many `windows`; that of repaired against compressed `damage_brought_back` as well: `share`,
    `low`, `high`, or None where compression did no damage there beyond noise.
    """
    losses = _losses(measured)
    for pair in comparisons:
        pair["texts"] = {text: _test(rows[pair["before"]], rows[pair["after"]]) for text, rows in losses.items()}
        if (pair["after"], pair["before"]) == ("repaired", "compressed") and "dense" in measured:
            for text, rows in losses.items():
                pair["texts"][text]["damage_brought_back"] = _share(rows)


def _losses(measured: Mapping[str, Measured]) -> Losses:
    import numpy as np

    found: Losses = {}
    for text in next(iter(measured.values())).corpora if measured else ():
        products = {row: scores.corpora.get(text) for row, scores in measured.items()}
        if not all(product is not None and (product.path / WINDOWS).is_file() for product in products.values()):
            continue  # from before each window's loss was kept
        rows = {
            row: -np.array(product.read(WINDOWS), float) for row, product in products.items() if product is not None
        }
        sizes = {len(values) for values in rows.values()}
        if len(sizes) == 1 and min(sizes) >= FEWEST and all(np.isfinite(values).all() for values in rows.values()):
            found[text] = rows
    return found


def _test(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    from idp.stats.significance import mean_test

    found = mean_test({"text": (before, after)})
    return {name: found[name] for name in ("difference", "low", "high", "p")} | {"windows": len(before)}


def _share(rows: Mapping[str, np.ndarray]) -> dict[str, float] | None:
    from idp.stats.damage import brought_back

    found = brought_back({"text": (rows["dense"], rows["compressed"], rows["repaired"])})
    return asdict(found) if found is not None and math.isfinite(found.high) else None
