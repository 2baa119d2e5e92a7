"""The claim check: what the two prompt papers claim, the test that each claim is put to, and a plain verdict."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from idp.analyze.cells import cells_of, title
from idp.analyze.compare import p_value, undecided
from idp.analyze.evidence import UNDECIDED, adjust
from idp.analyze.papers import CLAIMS
from idp.analyze.restored import displaced_not_forgotten
from idp.records.collect import Collection
from idp.records.measured import DENSE

SCHEMA = 1
MARGIN = 0.01  # of accuracy: what one task's noise is, and about three standard errors of the nine-task mean


def check(collection: Collection, margin: float = MARGIN) -> dict[str, Any]:
    """Puts every claim to its test, in every setting of which there is a repair or a compressed model.

    Args:
        collection: the records.
        margin: the largest difference of mean accuracy that still counts as none, and the least that counts as a gain
            worth the name.

    Returns:
        JSON: of each setting its `claims`, p-values adjusted over all of them.
    """
    settings = []
    for setting in collection.settings:
        cells = cells_of(collection, setting)
        if all(cell.first.role == DENSE for cell in cells):
            continue
        claims = [claim(cells, margin) for claim in CLAIMS]
        claims.append(displaced_not_forgotten(cells, margin, collection))
        adjust(claims)
        budget = cells[0].first.budget
        for claim in claims:
            claim.needs = [need.replace("MODEL", f" model={setting.model} budget={budget}") for need in claim.needs]
        settings.append(
            {
                "title": title(collection, setting),
                "model": setting.model,
                "dtype": setting.dtype,
                "tasks": setting.tasks,
                "budget": budget,
                "claims": [
                    asdict(claim)
                    | {"verdict": claim.verdict, "tally": claim.tally}
                    | {"evidence": [asdict(each) | {"verdict": each.verdict} for each in claim.evidence]}
                    for claim in claims
                ],
            }
        )
    return {"schema": SCHEMA, "margin": margin, "settings": settings, "notes": collection.notes}


def page(result: dict[str, Any]) -> str:
    """The claim check as Markdown: first the verdicts, then each claim with its test and its figures."""
    lines = ["# What the papers claim, and what these runs say", ""]
    lines += [
        f"Margin: {100 * result['margin']:g} point of mean accuracy. Intervals are 95 %; p is adjusted (Holm) over all"
        " claims of a setting, and the intervals are not. A verdict holds for this model, these tasks and this budget.",
        "",
    ]
    if len(result["settings"]) > 1:  # at one look, what more documents or another model decide
        verdicts = zip(*(setting["claims"] for setting in result["settings"]), strict=True)
        rows = [[of_all[0]["title"], *(claim["verdict"] for claim in of_all)] for of_all in verdicts]
        headers = ["claim", *(setting["title"] for setting in result["settings"])]
        lines += [tabulate(rows, headers=headers, tablefmt="github"), ""]
    for setting in result["settings"]:
        lines += [f"## {setting['title']}, budget {setting['budget']}", ""]
        lines += [f"Tasks: {', '.join(setting['tasks'])}.", ""]
        rows = [[claim["title"], f"**{claim['verdict']}**", claim["tally"]] for claim in setting["claims"]]
        lines += [tabulate(rows, headers=["claim", "verdict", "comparisons"], tablefmt="github"), ""]
        for claim in setting["claims"]:
            lines += _section(claim)
    if not result["settings"]:
        lines += ["No compressed or repaired model among these runs: nothing to judge."]
    lines += [f"- {note}" for note in result["notes"]]
    return "\n".join(lines)


def _section(claim: dict[str, Any]) -> list[str]:
    lines = [f"### {claim['title']}: {claim['verdict']}", "", f"{claim['says']} ({claim['source']})", ""]
    lines += [f"Test: {claim['test']}", ""]
    if claim["evidence"]:
        rows = [
            [
                evidence["what"],
                _figure(evidence),
                _p(evidence),
                _verdict(evidence),
                evidence["note"],
            ]
            for evidence in claim["evidence"]
        ]
        headers = ["comparison", "figure (95 % CI)", "p", "verdict", "note"]
        lines += [tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True), ""]
    lines += [f"Undecided: needs {need}" for need in claim["needs"]]
    return [*lines, ""] if claim["needs"] else lines


def _verdict(evidence: dict[str, Any]) -> str:
    """The verdict; where there is none, what the comparison would have found."""
    if evidence["verdict"] != UNDECIDED or evidence["detectable"] is None:
        return evidence["verdict"]
    return undecided(evidence["detectable"], evidence["documents_to_decide"])


def _p(evidence: dict[str, Any]) -> str:
    """The p-value where it speaks for the claim; that of a figure which points the other way would be misread."""
    if evidence["p_adjusted"] is None:
        return ""
    return "opposite" if evidence["holds"] is False else p_value(evidence["p_adjusted"])


def _figure(evidence: dict[str, Any]) -> str:
    form = {"points": _points, "share": lambda value: f"{100 * value:.0f} %", "ratio": lambda value: f"{value:.1f} x"}
    show = form[evidence["unit"]]
    if evidence["low"] is None:
        return show(evidence["value"])
    return f"{show(evidence['value'])} ({show(evidence['low'])} to {show(evidence['high'])})"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"
