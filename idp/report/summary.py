"""The table that the terminal shows: one line a run."""

from __future__ import annotations

from tabulate import tabulate

from idp.report.cells import Cell, cells
from idp.report.collect import Collection
from idp.report.measured import Measured
from idp.report.tables import main_scores


def sweep_table(found: Collection) -> str:
    """One line per run, named and ordered as in the report: what it scored, its weights, what it took to compress.

    `mean` is that of the tasks' main scores, beside the number of tasks; runs of other tasks, budgets or models are not
    to be compared, so these stand in every line.
    """
    corpora = sorted({corpus for record in found.records for corpus in record["idp"]["perplexity"]})
    records = {record["idp"]["name"]: record for record in found.records}
    lines, seeds = [], []
    for run, cell, model in _rows(found):
        about, weights = records[run]["idp"], records[run]["idp"]["weights"]
        scores, peak = main_scores(records[run], records[run]["results"]), about["peak_memory_bytes"].get("compress")
        seeds.append(str(model.seed) if cell.seeds else "")
        lines.append(
            [
                model.model,
                cell.compressor,
                cell.recovery,
                about["budget"],
                f"{sum(scores.values()) / len(scores):.3f} ({len(scores)})",
                *(f"{value:.2f}" if (value := about["perplexity"].get(corpus)) else "" for corpus in corpora),
                f"{weights['sparsity']:.3f}",
                f"{weights['bits_per_weight']:.2f}",
                f"{weights['packed_bytes'] / 1e6:.1f}",
                f"{weights['effective_bytes'] / 1e6:.1f}",
                f"{about['stages']['compress']['seconds']:.0f}",
                f"{peak / 1e9:.1f}" if peak else "",
            ]
        )
    headers = ["model", "compressor", "recovery", "budget", "mean (tasks)"]
    headers += [f"{corpus} perplexity" for corpus in corpora]
    headers += ["sparsity", "bits", "packed MB", "effective MB", "compress s", "peak GB"]
    if any(seeds):
        headers.insert(3, "seed")
        for line, seed in zip(lines, seeds, strict=True):
            line.insert(3, seed)
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)


def _rows(found: Collection) -> list[tuple[str, Cell, Measured]]:
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
