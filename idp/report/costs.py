"""The table of what each model costs: perplexity, divergence from dense, added parameters, size, memory and latency."""

from __future__ import annotations

import functools
import math

from idp.records.cell import PARTS, Cell
from idp.report.formats import MISSING, Column, Entry, Table
from idp.report.intervals import normal_interval
from idp.report.nine_tasks import NAMES, names, pending
from idp.report.view import View

GIB = 2**30


@functools.lru_cache(maxsize=8)
def cost_table(view: View) -> Table:
    """Perplexity, divergence from dense, added parameters, size and latency."""
    setting = view.setting
    columns = [*NAMES]
    columns += [Column(f"{corpus} perplexity", f"{corpus} perplexity") for corpus in setting.corpora]
    texts, tasks = (_measured_to_dense(view, part) for part in ("texts", "tasks"))
    columns += [Column(f"{text} KL", f"{text} KL to dense") for text in texts]
    columns += [Column(f"{task} KL", f"{view.headings.get(task, task)} KL to dense", wide=True) for task in tasks]
    columns += [
        Column("added", "added parameters"),
        Column("sparsity", "sparsity"),
        Column("bits", "bits"),
        Column("packed", "packed MB"),
        Column("effective", "effective MB"),
        Column("device", "GPU GiB"),
        Column("host", "host GiB"),
        Column("prefill", "prefill ratio"),
        Column("decode", "decode ratio"),
    ]
    lines = []
    for row in view.rows:
        line = _only_names(names(row))
        for corpus in setting.corpora:
            line[f"{corpus} perplexity"] = _perplexity(row, corpus)
        for part, read in (("texts", texts), ("tasks", tasks)):
            for name in read:
                line[f"{name} KL"] = _divergence(row, part, name)
        added = row.first.parameters["added"]
        line |= {
            "added": Entry(f"{added:,}", added),
            "sparsity": Entry(f"{row.weight('sparsity'):.3f}", row.weight("sparsity")),
            "bits": Entry(f"{row.weight('bits_per_weight'):.2f}", row.weight("bits_per_weight")),
            "packed": Entry(f"{row.weight('packed_bytes') / 1e6:.1f}", row.weight("packed_bytes") / 1e6),
            "effective": Entry(f"{row.weight('effective_bytes') / 1e6:.1f}", row.weight("effective_bytes") / 1e6),
        }
        line |= {place: _peak(row, place) for place in ("device", "host")}
        for part in PARTS:
            ratios = row.latency(part)
            merged = f" (merged {ratios[1]:.2f})" if ratios and ratios[1] else ""
            line[part] = Entry(f"{ratios[0]:.2f}{merged}", ratios[0]) if ratios else MISSING
        lines.append(line)
    lines += [_only_names(pending(run, view)) for run in view.unfinished]
    notes = ["ratio of median latency to the compressed model, on decompressed weights: it compares repairs alone"]
    if not any(line["prefill"] is not MISSING for line in lines if "prefill" in line):
        notes = ["no run has timed its models: add latency=default"]
    if any(line[key].spread is not None for line in lines for key in line if key.endswith((" perplexity", " KL"))):
        notes.append("perplexity and KL of several seeds: the mean ± standard deviation over them")
    if texts or tasks:
        notes.append("KL: mean divergence of the next token's distribution from the dense model's, in nats per token")
    notes.append("packed and effective sizes are computed from the measured weights; effective leaves zeros out")
    if any(line.get(place, MISSING) is not MISSING for line in lines for place in ("device", "host")):
        notes.append(
            "GPU and host GiB: the most memory at any time while the row was made and measured, by tensors on one GPU"
            " and by the process"
        )
    columns = [column for column in columns if column.key != "device" or any(row.peak("device") for row in view.rows)]
    return Table("Costs", columns, lines, notes)


def _peak(row: Cell, place: str) -> Entry:
    peak = row.peak(place)
    return Entry(f"{peak / GIB:.1f}", peak / GIB) if peak is not None else MISSING


def _only_names(line: dict[str, Entry]) -> dict[str, Entry]:
    return {column.key: line[column.key] for column in NAMES}


def _perplexity(row: Cell, corpus: str) -> Entry:
    value, spread = row.perplexity(corpus), row.perplexity_spread(corpus)
    if value is None:
        return MISSING
    found = row.first.perplexity[corpus]
    error = found.stderr if row.runs == 1 else None  # of the mean loss in nats, the perplexity's logarithm
    more = {"stderr of log": error, "tokens": found.tokens}
    low, high = (None, None)
    if error is not None and math.isfinite(value):
        low, high = (math.exp(end) for end in normal_interval(math.log(value), error) if end is not None)
    text = f"{value:.2f}" + (f" ±{spread:.2f}" if spread is not None else "")
    return Entry(text, value, spread=spread, low=low, high=high, more=more)


def _divergence(row: Cell, part: str, name: str) -> Entry:
    found = row.divergence(part, name)
    if found is None:
        return MISSING
    value, spread = found.pop("mean_kl"), found.pop("deviation", None)
    error = found.pop("stderr", None)
    more = {key.removesuffix("_kl").replace("_", " "): figure for key, figure in found.items()}
    text = f"{value:.3g}" + (f" ±{spread:.2g}" if spread is not None else "")
    low, high = normal_interval(value, error if row.runs == 1 else None)
    return Entry(text, value, stderr=error, spread=spread, low=low, high=high, more=more)


def _measured_to_dense(view: View, part: str) -> list[str]:
    """The texts or tasks on which a row's divergence from dense was measured."""
    found = [(model.fidelity or {}).get(part) or {} for row in view.rows for model in row.members]
    names = dict.fromkeys(name for each in found for name in each)
    return [task for task in view.tasks if task in names] if part == "tasks" else list(names)
