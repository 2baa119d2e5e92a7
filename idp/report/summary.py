"""The table that the terminal shows: one line a run."""

from __future__ import annotations

from tabulate import tabulate

from idp.records.cell import Cell
from idp.records.cells import cells
from idp.records.collect import Collection
from idp.records.differences import SHARE, last_step, with_interval
from idp.records.measured import ModelScores
from idp.records.schema import Record
from idp.records.scores import main_scores


def sweep_table(found: Collection) -> str:
    """One line per run, named and ordered as in the report: what it scored, its weights, what it took to compress.

    `mean` is that of the tasks' main scores, beside the number of tasks; runs of other tasks, budgets or models are not
    to be compared, so these stand in every line. `difference` is the mean's to the model that the run's own was made
    from, paired over documents, with its 95 % interval; a run with `baselines=false` has none.
    """
    corpora = sorted({corpus for record in found.records for corpus in record["idp"]["perplexity"]})
    measured = {corpus for record in found.records for corpus in _kl(record)}
    records = {record["idp"]["name"]: record for record in found.records}
    lines, seeds = [], []
    for run, cell, model in _rows(found):
        about, weights = records[run]["idp"], records[run]["idp"]["weights"]
        scores, peak = main_scores(records[run], records[run]["results"]), about["peak_memory_bytes"].get("compress")
        seeds.append(cell.seed_label(model))
        lines.append(
            [
                model.model,
                cell.compressor,
                cell.recovery,
                about["budget"],
                f"{sum(scores.values()) / len(scores):.3f} ({len(scores)})",
                _difference(records[run]),
                *(f"{value:.2f}" if (value := about["perplexity"].get(corpus)) else "" for corpus in corpora),
                *(f"{value:.3f}" if (value := _kl(records[run]).get(corpus)) else "" for corpus in sorted(measured)),
                f"{weights['sparsity']:.3f}",
                f"{weights['bits_per_weight']:.2f}",
                f"{weights['packed_bytes'] / 1e6:.1f}",
                f"{weights['effective_bytes'] / 1e6:.1f}",
                f"{compressed['seconds']:.0f}" if (compressed := about["stages"]["compress"]) else "",
                f"{peak / 1e9:.1f}" if peak else "",
            ]
        )
    headers = ["model", "compressor", "recovery", "budget", "mean (tasks)", "difference (95 % CI)"]
    headers += [f"{corpus} perplexity" for corpus in corpora]
    headers += [f"{corpus} KL to dense" for corpus in sorted(measured)]
    headers += ["sparsity", "bits", "packed MB", "effective MB", "compress s", "peak GB"]
    if any(seeds):
        headers.insert(3, "seed")
        for line, seed in zip(lines, seeds, strict=True):
            line.insert(3, seed)
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)


def _difference(record: Record) -> str:
    """The run's own model against what it was made from, in the mean over tasks."""
    step = last_step(record)
    if not step or not step["mean"]:
        return ""
    said = with_interval(step["mean"], step["unit"])
    points = " points" if step["unit"] == SHARE and "changed" not in said else ""
    return f"{said}{points} to {step['before']}"


def _kl(record: Record) -> dict[str, float]:
    """Mean KL divergence of the run's own model from dense on each text, in nats per token."""
    final = (record["idp"].get("fidelity") or {}).get(record["idp"]["row"]) or {}
    known = {corpus: found["mean_kl"] for corpus, found in final.get("texts", {}).items()}
    return {corpus: value for corpus, value in known.items() if value is not None}


def _rows(found: Collection) -> list[tuple[str, Cell, ModelScores]]:
    """Each run's name with the row that its last model is in, in the report's order."""
    last = {record["idp"]["name"]: record["idp"]["row"] for record in found.records}
    return [
        (run, cell, model)
        for setting in found.settings
        for cell in cells(found, setting)
        for model in cell.members
        for run in model.runs
        if last[run] == model.role
    ]
