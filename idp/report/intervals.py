"""Intervals in full, for CSV and the page: of scores, and of their differences to dense and to compressed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

from idp.records.cell import Cell
from idp.records.outcomes import paired
from idp.report.comparisons import LEVEL, Difference
from idp.report.formats import Column, Entry, Table
from idp.report.view import View


def interval_of_score(row: Cell, tasks: Sequence[str]) -> tuple[float | None, float | None]:
    """The 95 % interval of the mean of a row's scores on `tasks`: over documents, and over runs if there are several.

    By the t distribution where the outcomes of documents are there, else a normal one, from what the record says.
    """
    import numpy as np

    from idp.stats.variance import estimate

    scores = [paired(row.members, task) for task in tasks]
    known = [each for each in scores if each is not None and len(each[0])]
    if len(known) == len(tasks):
        tables = {task: np.stack(each) for task, each in zip(tasks, known, strict=True)}
        return estimate({task: (np.zeros_like(table[:1]), table) for task, table in tables.items()}).interval(LEVEL)
    value, error = row.mean(list(tasks)), row.mean_stderr(list(tasks))
    if value is None or error is None:
        return None, None
    variance = error**2 + (row.spread(list(tasks)) or 0.0) ** 2 / row.runs
    return normal_interval(value, variance**0.5)


def normal_interval(value: float, error: float | None) -> tuple[float | None, float | None]:
    """The 95 % interval of a figure whose standard error a record has; of none without one."""
    if error is None:
        return None, None
    half = NormalDist().inv_cdf(1 - LEVEL / 2) * error
    return value - half, value + half


def difference_table(view: View) -> Table:
    """The rows of the score table: of each score the differences to dense and to compressed, with all that is known."""
    keys = list(view.headings)
    columns = [
        Column(f"{key} {kind}", f"{view.headings[key]} {kind}", wide=True)
        for kind in ("to dense", "to compressed")
        for key in keys
    ]
    lines = []
    for row in view.rows:
        line = {}
        for kind, comparison in (("to dense", view.to_dense.get(row.id)), ("to compressed", view.to_compressed(row))):
            if comparison is None:
                continue
            for key in keys:
                if (found := comparison.of(key)) is not None:
                    line[f"{key} {kind}"] = in_full(found)
        lines.append(line)
    lines += [{} for _ in view.unfinished]
    return Table("Differences", columns, lines)


def in_full(found: Difference) -> Entry:
    """A difference with all its parts."""
    more = {
        "p": found.p,
        "p adjusted": found.adjusted,
        "test": found.test,
        "detectable": found.detectable,
        "documents": found.documents,
        "documents to decide": found.documents_to_decide,
        "gained": found.gained,
        "lost": found.lost,
    }
    return Entry(f"{found.difference:+.3f}", found.difference, found.differs, low=found.low, high=found.high, more=more)
