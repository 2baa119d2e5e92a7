"""Comparisons of any runs as text, as CSV and as LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from tabulate import tabulate

from idp.analyze.compare import p_value, verdict
from idp.analyze.pairwise import POOLED
from idp.records.differences import SHARE, in_points, share, signed, with_interval
from idp.records.latex import Cell, Column, document_table
from idp.stats.significance import LEVEL

CSV = (
    *("baseline", "run", "what", "name", "metric", "documents", "before", "after", "difference", "low", "high", "unit"),
    *("p", "p_adjusted", "test", "newly_right", "newly_broken", "detectable", "documents_to_decide"),
)


def page(result: Mapping[str, Any]) -> str:
    """The comparisons as Markdown, the effect before its p-value."""
    baseline = result["baseline"]
    lines = [f"baseline: {baseline['name']} ({baseline['by']}, {baseline['place']})", ""]
    for found in result["comparisons"]:
        lines += [f"## {found['name']} against {baseline['name']}", "", f"{found['by']}, {found['place']}", ""]
        lines += [_table(found, baseline["name"]), ""]
        lines += [f"- not compared: {each['task']}: {each['why']}" for each in found["not_compared"]]
        lines += [f"- {note}" for note in found["notes"]]
        if found["not_compared"] or found["notes"]:
            lines.append("")
    lines += [_regained(each, result["comparisons"][0]["name"]) for each in result["brought_back"]]
    lines += [f"- {note}" for note in result["notes"]]
    lines += [
        "- difference: paired over documents, above 0 where the later run is better, with its 95 % interval; p:"
        " McNemar's exact test where a document is right or wrong, else that of the interval, adjusted (Holm) over the"
        f" tables; bold below {LEVEL:g}; detects: the least true difference that so many documents find with 80 %",
    ]
    return "\n".join(lines)


def comma_separated(result: Mapping[str, Any]) -> str:
    """A line for each task, group and mean of each comparison; figures in full, differences in the scores' own unit."""
    written = io.StringIO()
    writer = csv.DictWriter(written, CSV, lineterminator="\n", restval="")
    writer.writeheader()
    for found in result["comparisons"]:
        for what, name, test in _tests(found):
            figures = {key: test.get(key) for key in CSV if key in test}
            writer.writerow(
                {key: "" if value is None else value for key, value in figures.items()}
                | {"baseline": result["baseline"]["name"], "run": found["name"], "what": what, "name": name}
                | {"unit": found["unit"]}
                | dict(zip(("newly_right", "newly_broken"), _turned(what, test, found), strict=True))
            )
    return written.getvalue()


def latex(result: Mapping[str, Any]) -> str:
    """A booktabs table of all comparisons: scores, the difference with its interval, documents that flipped."""
    unit = SHARE if all(found["unit"] == SHARE for found in result["comparisons"]) else ""
    scale, digits = (100, 1) if unit == SHARE else (1, 3)
    percent = " (%)" if unit == SHARE else ""
    columns = [
        *(Column("run", "Model"), Column("task", "Task"), Column("documents", "Documents", decimals=0)),
        Column("before", f"Baseline{percent}", decimals=digits, scale=scale),
        Column("after", f"Score{percent}", decimals=digits, scale=scale),
        Column("difference", "Difference", decimals=digits, scale=scale, signed=True),
        *(Column("right", "Newly right", decimals=0), Column("broken", "Newly broken", decimals=0)),
    ]
    rows = []
    for found in result["comparisons"]:
        for what, name, test in _tests(found):
            bold = test["p_adjusted"] < LEVEL
            right, broken = _turned(what, test, found)
            rows.append(
                {
                    "run": Cell(found["name"]),
                    "task": Cell(_title(what, name, test, found)),
                    "documents": Cell(value=test["documents"]),
                    "before": Cell(value=test["before"]),
                    "after": Cell(value=test["after"]),
                    "difference": Cell(value=test["difference"], low=test["low"], high=test["high"], bold=bold),
                    "right": Cell(value=right),
                    "broken": Cell(value=broken),
                }
            )
    caption = (
        f"Models against {result['baseline']['name']} on the same documents: difference{_points(unit)} with its 95 %"
        " interval; bold: beyond chance (p < 0.05, Holm)."
    )
    return document_table(columns, rows, caption=caption, label="tab:comparison")


def _points(unit: str) -> str:
    return " in percentage points" if unit == SHARE else ""


def _tests(found: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    yield from (("task", task, test) for task, test in found["tasks"].items())
    yield from (("group", group, test) for group, test in found["groups"].items())
    if len(found["tasks"]) > 1:
        yield "mean", "mean", found["mean"]


def _turned(what: str, test: Mapping[str, Any], found: Mapping[str, Any]) -> list[float | None]:
    """How many documents turned right and how many wrong, over all tasks behind a line."""
    names = {"task": [], "mean": list(found["tasks"])}.get(what, test.get("tasks", []))
    tests = [found["tasks"][name] for name in names] or [test]
    known = [each for each in tests if each["gained"] is not None]
    return [sum(each[key] for each in known) if known else None for key in ("gained", "lost")]


def _title(what: str, name: str, test: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    if what == "mean":
        return f"mean of {len(found['tasks'])} tasks"
    if what == "group":
        return f"{name} ({len(test['tasks'])} tasks{', by documents' if test['weighted'] == POOLED else ''})"
    return name


def _table(found: Mapping[str, Any], baseline: str) -> str:
    unit = found["unit"]
    rows = []
    for what, name, test in _tests(found):
        difference = with_interval(test, unit)
        detects = test["detectable"]
        rows.append(
            [
                _title(what, name, test, found),
                test.get("metric", ""),
                f"{test['documents']:,}",
                *("" if test[side] is None else f"{test[side]:.3f}" for side in ("before", "after")),
                f"**{difference}**" if test["p_adjusted"] < LEVEL else difference,
                p_value(test["p_adjusted"]),
                *("" if count is None else f"{count:g}" for count in _turned(what, test, found)),
                "" if detects is None else signed(detects, unit).lstrip("+"),
                _verdict(test, unit),
            ]
        )
    headers = ["task", "metric", "documents", baseline, found["name"], f"difference ({in_points(unit)}95 % CI)"]
    headers += ["p", "newly right", "newly broken", "detects", "verdict"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _verdict(test: Mapping[str, Any], unit: str) -> str:
    if unit == SHARE:
        return verdict(dict(test))
    decided = test["p_adjusted"] < LEVEL
    return ("better" if test["difference"] > 0 else "worse") if decided else "undecided"


def _regained(found: Mapping[str, Any], second: str) -> str:
    """What a further run brings back of what the second one lost."""
    documents = found["documents"]
    counts = ""
    if documents:
        counts = (
            f"; {documents['restored']:,} of the {documents['broken']:,} documents that {second} broke are right again,"
            f" {documents['newly_broken']:,} newly broken; as a control, {documents['learned']:,} of the"
            f" {documents['never_known']:,} that neither had right"
        )
    return f"- {found['name']} brings back of what {found['against']} lost: {share(found['share'])}{counts}"
