"""The table of the papers: model x compressor x recovery against tasks."""

from __future__ import annotations

import functools

from idp.records.cell import Cell
from idp.records.collect import Unfinished
from idp.records.differences import difference_to, in_points, signed
from idp.report.comparisons import Comparison, Difference
from idp.report.formats import MISSING, Column, Entry, Table, percent
from idp.report.intervals import interval_of_score
from idp.report.view import View

NAMES = [
    Column("model", "model"),
    Column("compressor", "compressor"),
    Column("recovery", "recovery"),
]
MANY_TASKS = 20  # above so many, those of a group that the runs name have columns only where there is room
UPPER_BOUND = "upper bound"
SEED_ONLY = "¹"  # marks an interval of one run


@functools.lru_cache(maxsize=8)
def score_table(view: View) -> Table:
    """Scores by task, means, the difference to what a model was made from, and the damage that a repair brings back."""
    titles, tasks, points = view.headings, view.tasks, in_points(view.unit)
    grouped = {task for members in view.setting.groups.values() for task in members}
    folded = grouped if len(tasks) > MANY_TASKS else set()
    columns = [*NAMES, Column("seeds", "seeds"), Column("runs", "runs")]
    columns += [Column(task, titles[task], of="tasks", wide=task in folded) for task in tasks]
    columns += [Column(key, title, of="means") for key, title in titles.items() if key not in tasks]
    columns += [
        Column("difference", f"difference ({points}95 % CI)", in_csv="difference"),
        Column("detectable", "detectable" + (f" ({points.rstrip(', ')})" if points else ""), in_csv="detectable"),
        Column("to dense", difference_to("dense", view.unit), in_csv="difference to dense"),
        Column("brought back", "damage brought back (95 % CI)", in_csv="damage brought back"),
    ]
    lines = []
    for row in view.rows:
        comparison = view.compared.get(row.id, Comparison())
        line = names(row)
        for key in titles:
            line[key] = _score(view, row, key, comparison.differs(None if key == "mean" else key))
        line["difference"] = _difference(view, row, comparison)
        found = comparison.mean
        if found is not None and found.detectable is not None:
            line["detectable"] = Entry(signed(found.detectable, view.unit).lstrip("+"), found.detectable)
        if view.parent(row) is not view.dense and (to_dense := view.to_dense.get(row.id)) is not None:
            line["to dense"] = difference_entry(view, row, to_dense.mean) if to_dense.mean else MISSING
        else:
            line["to dense"] = Entry("")
        line["brought back"] = _brought_back(view, row)
        lines.append(line)
    lines += [pending(run, view) for run in view.unfinished]
    return Table("Scores", columns, lines, _notes(view, bool(folded)))


def difference_entry(view: View, row: Cell, found: Difference) -> Entry:
    """A difference as tables show it: with its interval, marked where that holds for one seed only."""
    mark = SEED_ONLY if row.of_one_seed else ""
    value, low, high = (signed(each, view.unit) for each in (found.difference, found.low, found.high))
    text = f"{value} ({low} to {high}){mark}"
    return Entry(text, found.difference, found.differs, low=found.low, high=found.high)


def names(row: Cell) -> dict[str, Entry]:
    """What a row is, its seeds and its runs."""
    return {
        "model": Entry(row.first.model),
        "compressor": Entry(row.compressor),
        "recovery": Entry(row.recovery),
        "seeds": Entry(row.seeds_label),
        "runs": Entry(str(row.runs), row.runs),
    }


def _score(view: View, row: Cell, key: str, bold: bool = False) -> Entry:
    tasks = view.members(key)
    value, error, spread = row.mean(tasks), row.mean_stderr(tasks), row.spread(tasks)
    if value is None:
        return MISSING
    text = f"{value:.3f}"
    if spread is not None:
        text += f" ±{spread:.3f}"
    if error is not None:
        text += f" ({error:.3f})"
    low, high = interval_of_score(row, tasks)
    scores = [row.first.tasks[task] for task in tasks]
    more = {
        "documents": sum(score.documents for score in scores),
        "metric": scores[0].metric.split(",")[0] if len(scores) == 1 else None,
        "stand-in": "+".join(score.stand_in for score in scores if score.stand_in) or None,
    }
    return Entry(text, value, bold, error, spread, low, high, more)


def _difference(view: View, row: Cell, comparison: Comparison) -> Entry:
    if view.parent(row) is None:
        return Entry("")
    if (found := comparison.mean) is not None:
        return difference_entry(view, row, found)
    difference = view.difference(row)
    return MISSING if difference is None else Entry(f"{signed(difference, view.unit)} (not paired)", difference)


def _brought_back(view: View, row: Cell) -> Entry:
    found, why = view.brought_back(row)
    if found is None:
        return Entry(why)
    text = f"{percent(found.share)} ({percent(found.low)} to {percent(found.high)})"
    return Entry(text, found.share, low=found.low, high=found.high)


def _notes(view: View, folded: bool) -> list[str]:
    from idp.evaluate.selection import luck_phrase

    notes = [
        "score (standard error over documents); of several runs, which differ by seeds alone, the mean ± standard"
        " deviation over them",
        "difference: of a repair to its compressed model, of a compressed model to dense, paired over documents, with"
        " its 95 % t interval; detectable: the least true difference that so many documents, tasks and runs detect with"
        " 80 %; bold: p < 0.05 after Holm's correction over this table (McNemar's exact test on one run's score, else a"
        " paired t-test)",
        "damage brought back: (repaired - compressed) / (dense - compressed) of the means, with Fieller's interval,"
        " where the damage is itself beyond noise",
    ]
    if any(row.of_one_seed for row in view.rows):
        notes.append(f"{SEED_ONLY} of one run: the interval holds for this seed only")
    if any(row.first.uses_labels for row in view.rows):
        notes.append(f"{UPPER_BOUND}: it uses the labels, and is no method")
        known = [(row, luck_phrase(row.first.controls)) for row in view.rows if row.first.uses_labels]
        notes += [f"{row.name}: {luck}" for row, luck in known if luck]
    if folded:
        notes.append("the tasks behind the groups have columns in table.csv and in the page")
    return notes


def pending(run: Unfinished, view: View) -> dict[str, Entry]:
    """A line for a run that has no record: its name ends in compressor, recovery, budget and a hash."""
    parts = run.name.removeprefix(f"{view.setting.model}-").rsplit("-", 3)
    compressor, recovery = (parts[0], parts[1]) if len(parts) == 4 else (run.name, "")
    state = {"running": f"running: {run.stage}", "failed": "failed", "missing": "missing"}.get(run.state, "no record")
    return {
        "model": Entry(view.setting.model),
        "compressor": Entry(compressor),
        "recovery": Entry(" ".join(part for part in (recovery, run.settings, f"[{state}]") if part)),
        "seeds": Entry(""),
    }
