"""What became of single documents under each repair, summed over tasks."""

from __future__ import annotations

from idp.records.cell import Cell
from idp.records.outcomes import paired
from idp.report.formats import Column, Entry, Table
from idp.report.view import View

COLUMNS = {
    "documents": "documents",
    "broken": "broken by compression",
    "restored": "of them brought back",
    "newly_broken": "newly broken",
    "never_known": "never known",
    "learned": "of them learned",
}


def behaviour_table(view: View) -> Table:
    """Of each repair: how many documents compression broke, and what the repair did to them and to the others."""
    rows = []
    for row in view.repaired:
        counts = count(view, row)
        if counts is None:
            continue
        line = {"compressor": Entry(row.compressor), "recovery": Entry(row.recovery)}
        for key in COLUMNS:
            line[key] = Entry(f"{counts[key]:,}", counts[key])
        for part, whole in (("restored", "broken"), ("learned", "never_known")):
            if counts[whole]:
                line[part] = Entry(f"{counts[part]:,} ({counts[part] / counts[whole]:.0%})", counts[part])
        rows.append(line)
    columns = [Column("compressor", "compressor"), Column("recovery", "recovery")]
    columns += [Column(key, title) for key, title in COLUMNS.items()]
    notes = [
        "right and wrong of single documents, all tasks together, of the lowest seed; `learned` is the control: a"
        " repair that only shuffles answers turns right as large a share of what the dense model never knew",
    ]
    return Table("Documents", columns, rows, notes)


def count(view: View, row: Cell) -> dict[str, int] | None:
    """How many documents of all tasks are of each kind of `idp.stats.flips`; None where none could be paired."""
    from idp.stats.flips import flips

    compressed = view.parent(row)
    dense = view.parent(compressed) if compressed is not None else None
    if compressed is None or dense is None:
        return None
    before = view.found.get(row.first.parent) or compressed.first  # of several calibrations the one that it repairs
    totals: dict[str, int] = {}
    for task in view.tasks:
        scores = paired([dense.first, before, row.first], task)
        if scores is None:
            continue
        for kind, found in flips(*(each > 0.5 for each in scores)).counts.items():
            totals[kind] = totals.get(kind, 0) + found
    return totals or None
