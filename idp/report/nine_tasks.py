"""The table of the papers: model x compressor x recovery against tasks, with what each costs."""

from __future__ import annotations

from idp.report.cells import Cell, groups
from idp.report.collect import Unfinished
from idp.report.comparisons import Comparison
from idp.report.formats import MISSING, Column, Entry, Table
from idp.report.view import View

NAMES = [Column("model", "model"), Column("compressor", "compressor"), Column("recovery", "recovery")]


def headings(view: View) -> dict[str, str]:
    """Each task's name, marked where another's documents stand in."""
    ran = {task: view.setting.sample[f"task:{task}"][0] for task in view.tasks}
    return {task: task if runs == task else f"{task} (stand-in: {runs})" for task, runs in ran.items()}


def score_table(view: View) -> Table:
    """Scores by task, means, the difference to what a model was made from, and the damage that a repair brings back."""
    from idp.evaluate.selection import luck_said

    titles = headings(view)
    tasks = list(titles)
    grouped = groups(tasks)
    columns = [*NAMES, Column("seeds", "seeds")]
    columns += [Column(task, titles[task], of="tasks") for task in tasks]
    columns += [Column(f"mean {name}", f"mean {name}", of="means") for name in grouped] if len(tasks) > 1 else []
    columns += [Column("mean", f"mean of {len(tasks)}" if len(tasks) > 1 else "mean", of="means")]
    columns += [Column("difference", "difference (95 %)"), Column("brought back", "damage brought back")]
    lines = []
    for row in view.rows:
        comparison = view.compared.get(row.id, Comparison())
        line = _names(row)
        for task in tasks:
            line[task] = _score(row, [task], comparison.differs(task))
        for name, members in grouped.items():
            line[f"mean {name}"] = _score(row, members)
        line["mean"] = _score(row, tasks, comparison.differs())
        line["difference"] = _difference(view, row, comparison)
        share, why = view.brought_back(row)
        line["brought back"] = Entry(f"{share:.0%}", share) if share is not None else Entry(why)
        lines.append(line)
    lines += [_pending(run, view) for run in view.unfinished]
    notes = [
        "score (standard error over documents); of several seeds the mean ± standard deviation over them",
        "difference: of a repair to its compressed model, of a compressed model to dense, by a paired bootstrap over"
        " documents; bold: p < 0.05 after Holm's correction over this table (McNemar's exact test on one run's score,"
        " else a t-test paired over documents)",
        "damage brought back: (repaired - compressed) / (dense - compressed) of the means, where the damage is itself"
        " beyond noise",
    ]
    for row in view.rows:  # an upper bound never stands without what luck explains of it
        if row.first.peeks and (said := luck_said(row.first.controls)):
            notes.append(f"{row.name}: {said}")
    return Table("Scores", columns, lines, notes)


def cost_table(view: View) -> Table:
    """Perplexity, added parameters, size and latency."""
    setting = view.setting
    columns = [*NAMES]
    columns += [Column(f"{corpus} perplexity", f"{corpus} perplexity") for corpus in setting.corpora]
    columns += [
        Column("added", "added parameters"),
        Column("sparsity", "sparsity"),
        Column("bits", "bits"),
        Column("packed", "packed MB"),
        Column("effective", "effective MB"),
        Column("prefill", "prefill ratio"),
        Column("decode", "decode ratio"),
    ]
    lines = []
    for row in view.rows:
        line, weights = _names(row), row.first.weights
        for corpus in setting.corpora:
            line[f"{corpus} perplexity"] = _perplexity(row, corpus)
        added = row.first.parameters["added"]
        line |= {
            "added": Entry(f"{added:,}", added),
            "sparsity": Entry(f"{weights['sparsity']:.3f}", weights["sparsity"]),
            "bits": Entry(f"{weights['bits_per_weight']:.2f}", weights["bits_per_weight"]),
            "packed": Entry(f"{weights['packed_bytes'] / 1e6:.1f}", weights["packed_bytes"] / 1e6),
            "effective": Entry(f"{weights['effective_bytes'] / 1e6:.1f}", weights["effective_bytes"] / 1e6),
        }
        for part in ("prefill", "decode"):
            ratios = row.latency(part)
            merged = f" (merged {ratios[1]:.2f})" if ratios and ratios[1] else ""
            line[part] = Entry(f"{ratios[0]:.2f}{merged}", ratios[0]) if ratios else MISSING
        lines.append(line)
    lines += [_pending(run, view) for run in view.unfinished]
    notes = ["ratio of median latency to the compressed model, on decompressed weights: it compares repairs alone"]
    if not any(line["prefill"] is not MISSING for line in lines if "prefill" in line):
        notes = ["no run has timed its models: add latency=default"]
    if any(line[key].spread is not None for line in lines for key in line if key.endswith(" perplexity")):
        notes.append("perplexity of several seeds: the mean ± standard deviation over them")
    notes.append("packed and effective sizes are computed from the measured weights; effective leaves zeros out")
    return Table("Costs", columns, lines, notes)


def _names(row: Cell) -> dict[str, Entry]:
    return {
        "model": Entry(row.first.model),
        "compressor": Entry(row.compressor),
        "recovery": Entry(row.recovery),
        "seeds": Entry(", ".join(map(str, row.seeds))),
    }


def _score(row: Cell, tasks: list[str], bold: bool = False) -> Entry:
    value, error, spread = row.mean(tasks), row.mean_stderr(tasks), row.spread(tasks)
    if value is None:
        return MISSING
    text = f"{value:.3f}"
    if spread is not None:
        text += f" ±{spread:.3f}"
    if error is not None:
        text += f" ({error:.3f})"
    return Entry(text, value, bold, error, spread)


def _perplexity(row: Cell, corpus: str) -> Entry:
    value, spread = row.perplexity(corpus), row.perplexity_spread(corpus)
    if value is None:
        return MISSING
    return Entry(f"{value:.2f}" + (f" ±{spread:.2f}" if spread is not None else ""), value, spread=spread)


def _difference(view: View, row: Cell, comparison: Comparison) -> Entry:
    if view.parent(row) is None:
        return Entry("")
    if (found := comparison.mean) is not None:
        text = f"{found.difference:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
        return Entry(text, found.difference, comparison.differs())
    difference = view.difference(row)
    return MISSING if difference is None else Entry(f"{difference:+.3f} (not paired)", difference)


def _pending(run: Unfinished, view: View) -> dict[str, Entry]:
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
