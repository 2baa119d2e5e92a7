"""Plots of training: what a repair has learned after so much text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from idp.records.cell import Cell
from idp.records.measured import ModelScores
from idp.report.drawing import PANELS, NothingToShow, line_style, new_figure
from idp.report.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = list[tuple[float, float]]  # tokens read, held-out loss
# What a loss is of: curves that differ in one of these are not to be compared, and stand apart.
LOSS = ("objective", "temperature", "lm_weight", "sequence_length", "heldout_sequences")


def training_curves(view: View) -> Figure:
    """Held-out loss against the tokens that a repair was trained on: a panel for each compressed model and loss."""
    from matplotlib.ticker import EngFormatter

    found: dict[tuple[Any, ...], list[tuple[Cell, list[Curve]]]] = {}
    for row in view.repaired:
        if curves := [curve for model in row.members if len(curve := curve_of(model)) > 1]:
            found.setdefault((row.compressor, *loss_of(row.first)), []).append((row, curves))
    if not found:
        raise NothingToShow(
            "repairs that were trained by runs of this version; older ones are given it by their command"
        )
    panels_of = list(found.items())[:PANELS]
    figure, panels = new_figure(len(panels_of), columns=2)
    for axes, ((compressor, objective, *_), rows) in zip(panels, panels_of, strict=True):
        for number, (row, curves) in enumerate(rows):
            for seed, curve in enumerate(curves):
                label = row.recovery if not seed else None
                axes.plot(*zip(*curve, strict=True), label=label, marker=".", markersize=4, **line_style(number))
        axes.set_title("dense" if compressor == "none" else compressor, fontsize=9)
        axes.set(
            xlabel="tokens trained on (of a bank: each prompt)", ylabel=f"held-out loss, {objective} (nats per token)"
        )
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.legend(fontsize=7)
    return figure


def curve_of(model: ModelScores) -> Curve:
    """A repair's held-out loss by the tokens read: of several prompts, trained one by one, their mean.

    Empty where it was not trained, or its record is of an older version.
    """
    options = (model.config["recovery"] or {}).get("training")
    parts = [part.get("heldout") for part in (model.training or {}).values()]
    if not options or not parts or any(part is None for part in parts):
        return []
    by_step: dict[float, list[float]] = {}
    for part in parts:
        for step, loss in part or ():
            by_step.setdefault(step, []).append(loss)
    tokens = options["batch_size"] * options["sequence_length"]
    return [(step * tokens, _mean(losses)) for step, losses in sorted(by_step.items()) if len(losses) == len(parts)]


def loss_of(model: ModelScores) -> tuple[Any, ...]:
    """What its held-out loss is of, its objective first; nothing of a repair that was not trained."""
    options = (model.config["recovery"] or {}).get("training") or {}
    corpus = model.config["corpus"] or {}
    return (*(options.get(name) for name in LOSS), corpus.get("name"), corpus.get("path"))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
