"""Every repair against the model that it repairs, and every compressed model against the dense one: effect and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from tabulate import tabulate

from idp.analyze.cells import cells_of, dense_of, documents, pair, title, unrepaired_of
from idp.analyze.significance import LEVEL, holm, paired_bootstrap, t_test, task_test
from idp.report.cells import Cell
from idp.report.collect import Collection
from idp.report.measured import COMPRESSED, REPAIRED

SCHEMA = 1


def compare(collection: Collection) -> dict[str, Any]:
    """Tests what compression cost and what each repair brought back, for the mean over tasks and for each task.

    p-values are adjusted (Holm) over all that a setting's table shows: the means as one family, the tasks as another.

    Returns:
        JSON: of each setting its `comparisons`, and `not_compared`, what could not be held against what.
    """
    settings = []
    for setting in collection.settings:
        cells = cells_of(collection, setting)
        found, missing = [], []
        for cell in cells:
            against = {COMPRESSED: dense_of, REPAIRED: unrepaired_of}.get(cell.first.role)
            if against is None:
                continue
            before = against(cells, cell)
            if before is None:
                missing.append(f"{cell.name}: what it was made from was not measured")
                continue
            comparison = _comparison(before, cell)
            if comparison is None:
                missing.append(f"{cell.name} and {before.name}: no task was measured on the same documents by both")
            else:
                found.append(comparison)
        _adjust([comparison["mean"] for comparison in found])
        _adjust([task for comparison in found for task in comparison["tasks"].values()])
        settings.append(
            {
                "title": title(collection, setting),
                "model": setting.model,
                "dtype": setting.dtype,
                "comparisons": found,
                "not_compared": missing,
            }
        )
    return {"schema": SCHEMA, "level": LEVEL, "settings": settings, "notes": collection.notes}


def page(result: dict[str, Any]) -> str:
    """The comparisons as Markdown, the effect before its p-value."""
    lines = ["# What compression costs and what repairs bring back", ""]
    lines += [
        "Differences in points (hundredths) of accuracy, with 95 % intervals from a paired bootstrap over documents,"
        " and over runs where there are several. p is that of a paired t-test (a single task of single runs: McNemar's"
        " exact test), adjusted (Holm) over the table; bold where it is below 0.05.",
        "",
    ]
    for setting in result["settings"]:
        lines += [f"## {setting['title']}", ""]
        rows = [
            [
                found["after"],
                found["before"],
                f"{found['runs'][0]} / {found['runs'][1]}",
                len(found["tasks"]),
                found["documents"],
                _bold(points(found["mean"]), found["mean"]["p_adjusted"]),
                p_value(found["mean"]["p_adjusted"]),
                ", ".join(
                    f"{task} {100 * test['difference']:+.1f}"
                    for task, test in found["tasks"].items()
                    if test["p_adjusted"] < LEVEL
                ),
            ]
            for found in setting["comparisons"]
        ]
        headers = ["model", "against", "runs", "tasks", "documents", "mean difference", "p", "tasks that differ"]
        lines += [tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True) if rows else "Nothing."]
        lines += ["", *(f"- not compared: {said}" for said in setting["not_compared"])]
        lines += [
            f"- {found['after']}: not on the same documents as {found['before']}, so left out: {', '.join(left_out)}"
            for found in setting["comparisons"]
            if (left_out := found["left_out"])
        ]
        lines.append("")
    lines += [f"- {note}" for note in result["notes"]]
    return "\n".join(lines)


def points(found: dict[str, Any]) -> str:
    """A difference of scores and its interval, in hundredths."""
    return f"{100 * found['difference']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"


def p_value(p: float) -> str:
    """A p-value as tables show it."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _comparison(before: Cell, after: Cell) -> dict[str, Any] | None:
    scores, left_out = pair(before, after)
    if not scores:
        return None
    return {
        "before": before.name,
        "after": after.name,
        "runs": [len(before.members), len(after.members)],
        "documents": documents({task: list(tables) for task, tables in scores.items()}),
        "left_out": left_out,
        "mean": asdict(replace(paired_bootstrap(scores), p=t_test(scores))),
        "tasks": {task: _of_task(*tables) for task, tables in scores.items()},
    }


def _of_task(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    p, test = task_test(before, after)
    found = paired_bootstrap({"task": (before, after)})
    return {**asdict(replace(found, p=p)), "test": test}


def _adjust(tests: Sequence[dict[str, Any]]) -> None:
    for test, adjusted in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_adjusted"] = adjusted


def _bold(text: str, p: float) -> str:
    return f"**{text}**" if p < LEVEL else text
