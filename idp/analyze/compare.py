"""Every repair against the model that it repairs, and every compressed model against the dense one: effect and test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from idp.analyze.cells import cells_of, dense_of, documents, pair, title, unrepaired_of
from idp.records.collect import Collection
from idp.records.measured import COMPRESSED, REPAIRED
from idp.records.outcomes import graded
from idp.stats.power import documents_to_decide
from idp.stats.significance import LEVEL, comparison, holm
from idp.stats.variance import Paired, estimate

SCHEMA = 1
Families = dict[
    tuple[str, str], list[tuple[dict[str, Any], Paired]]
]  # tests that are read together, and what they test


def compare(collection: Collection) -> dict[str, Any]:
    """Tests what compression cost and what each repair brought back, for the mean over tasks and for each task.

    p-values are adjusted (Holm) over all that a setting's table shows: the means as one family, the tasks as another,
    and the same of the graded outcome.

    Returns:
        JSON: of each setting its `comparisons`, each as `idp.stats.significance.comparison` gives it and with
        `p_adjusted` of every test; and `not_compared`, what could not be held against what. `documents_to_decide` is
        there for all that is undecided by the adjusted p, and then holds at the level that Holm's method leaves it.
    """
    settings = []
    for setting in collection.settings:
        cells = cells_of(collection, setting)
        found, missing = [], []
        families: Families = {}
        for cell in cells:
            against = {COMPRESSED: dense_of, REPAIRED: unrepaired_of}.get(cell.first.role)
            if against is None:
                continue
            before = against(cells, cell)
            if before is None:
                missing.append(f"{cell.name}: what it was made from was not measured")
                continue
            scores, left_out = pair(before, cell)
            if not scores:
                missing.append(f"{cell.name} and {before.name}: no task was measured on the same documents by both")
                continue
            probabilities = pair(before, cell, graded)[0]
            tests = comparison(scores, probabilities)
            sort_by_family(families, tests, scores, probabilities)
            found.append(
                {
                    "before": before.name,
                    "after": cell.name,
                    "documents": documents({task: list(tables) for task, tables in scores.items()}),
                    "left_out": left_out,
                    "trained": cell.first.role == REPAIRED,
                    **tests,
                }
            )
        for family in families.values():
            adjust(family)
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


def sort_by_family(
    families: Families,
    tests: dict[str, Any],
    scores: Paired,
    probabilities: Paired,
) -> None:
    """Adds each test of a comparison, with what it tested, to those that it is adjusted with."""
    for outcome, tested, tables in (("hits", tests, scores), ("graded", tests["graded"], probabilities)):
        if tested:
            families.setdefault((outcome, "mean"), []).append((tested["mean"], tables))
            single = [(test, {task: tables[task]}) for task, test in tested["tasks"].items()]
            families.setdefault((outcome, "tasks"), []).extend(single)


def adjust(family: Sequence[tuple[dict[str, Any], Paired]]) -> None:
    """Adds `p_adjusted` (Holm) to tests that are read together, and the documents that would decide at its level."""
    for (test, _), adjusted in zip(family, holm([test["p"] for test, _ in family]), strict=True):
        test["p_adjusted"] = adjusted
    undecided = [(test, tables) for test, tables in family if test["p_adjusted"] >= LEVEL]
    for test, tables in undecided:  # the next of these to be decided is held against this level
        exact = test.get("test") == "mcnemar"
        test["documents_to_decide"] = documents_to_decide(estimate(tables), LEVEL / len(undecided), exact)


def page(result: dict[str, Any]) -> str:
    """The comparisons as Markdown, the effect before its p-value."""
    lines = ["# What compression costs and what repairs bring back", ""]
    lines += [
        "Differences in points (hundredths) of accuracy, with 95 % intervals paired over documents, and over runs where"
        " there are several. p is that of the same t distribution (a single task of single runs: McNemar's exact test),"
        " adjusted (Holm) over the table; bold where it is below 0.05. `detects`: the least true difference that so"
        " many documents, tasks and runs find with 80 % at 5 %, before the adjustment. What is undecided may be as"
        " large as its interval says; the documents that would decide are those with which a difference as large as"
        " the one observed is found with 80 %, after the adjustment.",
        "",
    ]
    for setting in result["settings"]:
        lines += [f"## {setting['title']}", "", _table(setting["comparisons"]), ""]
        sharper = [found | found["graded"] for found in setting["comparisons"] if found["graded"]]
        if sharper:
            lines += [
                "The probability of the right choice, a graded outcome beside right and wrong: it varies less, so it"
                " tells models apart on fewer documents, and it is another question. Tasks with choices alone, in"
                " hundredths of probability.",
                "",
                _table(sharper),
                "",
            ]
        lines += [f"- not compared: {note}" for note in setting["not_compared"]]
        lines += [
            f"- {found['after']}: not on the same documents as {found['before']}, so left out: {', '.join(left_out)}"
            for found in setting["comparisons"]
            if (left_out := found["left_out"])
        ]
        lines += _few_runs(setting["comparisons"])
        lines.append("")
    lines += [f"- {note}" for note in result["notes"]]
    return "\n".join(lines)


def verdict(test: dict[str, Any], runs: Sequence[int] = (1, 1)) -> str:
    """What a test decided; where nothing, what it would have detected, and how many documents would decide.

    Args:
        test: as `comparison` gives it, with `p_adjusted` where it is one of several.
        runs: of the model before and after.
    """
    if test.get("p_adjusted", test["p"]) < LEVEL:
        return "better" if test["difference"] > 0 else "worse"
    text = undecided(test["detectable"], test["documents_to_decide"])
    if test["documents_to_decide"] is None and test["difference"] and test["detectable"]:
        text += "; more documents would not decide" + (", more runs might" if max(runs) > 1 else "")
    return text


def undecided(detects: float | None, documents: int | None) -> str:
    """What is said where nothing was decided: the least difference that would have been detected.

    Args:
        detects: in units of the scores; None where nothing differs.
        documents: of each task, how many would decide; None where no number would, or that is not known.
    """
    if detects is None:
        return "undecided: no document differs"
    text = f"undecided: detects {_short(detects)} points"
    return text if documents is None else f"{text}; {documents:,} documents a task would decide"


def points(found: dict[str, Any]) -> str:
    """A difference of scores and its interval, in hundredths."""
    return f"{100 * found['difference']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"


def p_value(p: float) -> str:
    """A p-value as tables show it."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _table(comparisons: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            found["after"],
            found["before"],
            f"{found['runs'][1]} / {found['runs'][0]}",
            len(found["tasks"]),
            found["mean"]["documents"],
            _bold(points(found["mean"]), found["mean"]["p_adjusted"]),
            p_value(found["mean"]["p_adjusted"]),
            "" if found["mean"]["detectable"] is None else _short(found["mean"]["detectable"]),
            verdict(found["mean"], found["runs"]),
            ", ".join(
                f"{task} {100 * test['difference']:+.1f}"
                for task, test in found["tasks"].items()
                if test["p_adjusted"] < LEVEL
            ),
        ]
        for found in comparisons
    ]
    headers = ["model", "against", "runs of each", "tasks", "documents", "mean difference", "p", "detects", "verdict"]
    headers.append("tasks that differ")
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True) if rows else "Nothing."


def _few_runs(comparisons: Sequence[dict[str, Any]]) -> list[str]:
    """What intervals of one or two runs are worth."""
    notes = []
    for count, worth in (
        (1, "one run: the interval holds for that seed only, and how much seeds differ is not in it"),
        (2, "two runs: they say little of how much seeds differ, and the interval is a rough one"),
    ):
        names = [found["after"] for found in comparisons if found["trained"] and found["runs"][1] == count]
        if names:
            notes.append(f"- {', '.join(dict.fromkeys(names))}: {worth}")
    return notes


def _short(difference: float) -> str:
    """In points, with two digits."""
    return f"{100 * difference:.2g}" if difference < 0.995 else f"{100 * difference:.0f}"


def _bold(text: str, p: float) -> str:
    return f"**{text}**" if p < LEVEL else text
