"""Plots of one setting, each as PNG and SVG; one that has nothing to show is left out, with what it wants."""

from __future__ import annotations

import functools
from collections.abc import Callable
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.records.cell import PARTS, Cell, WeightFigure
from idp.records.measured import REPAIRED
from idp.report.drawing import (
    COLOURS,
    MARKERS,
    PALE,
    PANELS,
    NothingToShow,
    added_axis,
    colours_of,
    draw_legend,
    draw_noise,
    draw_points,
    interval_of,
    markers_of,
    new_figure,
    pareto_front,
    save_figure,
    say_names,
    scale_of,
    score_label,
    span_at_least,
)
from idp.report.frontier import frontier
from idp.report.layer_plots import similarity_to_dense, weights_of_layers
from idp.report.training_plots import training_curves
from idp.report.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure


ERRORS = 2 / 1.96  # of half a 95 % interval, to two standard errors
LEAST_PERPLEXITY = 0.02  # relative: so much at least has the strongest colour
BARS = "95 % of the difference\nto what it was made from"


def draw_all(view: View, folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Draws every plot that the setting has data for.

    Args:
        view: the setting.
        folder: where `<name>.png` and `<name>.svg` go.

    Returns:
        title and PNG of each plot drawn; title and the reason of each that was left out.
    """
    drawn, left_out = {}, {}
    folder.mkdir(parents=True, exist_ok=True)
    for title, draw in PLOTS.items():
        name = draw.__name__
        for suffix in (".png", ".svg"):
            (folder / f"{name}{suffix}").unlink(missing_ok=True)  # of an earlier report
        try:
            save_figure(draw, view, folder / name)
        except NothingToShow as reason:
            left_out[title] = str(reason)
            continue
        drawn[title] = folder / f"{name}.png"
    return drawn, left_out


def recovery_and_parameters(view: View) -> Figure:
    """By how much each repair is above its compressed model, against the parameters that it adds."""
    differences = {row.id: value for row in view.repaired if (value := view.difference(row)) is not None}
    rows = [row for row in view.repaired if row.id in differences]
    if not rows:
        raise NothingToShow("runs with a repair (recovery=prompt, idp, lora, ...) and baselines=true")
    figure, (axes,) = new_figure(1)
    colours, markers = colours_of(view, rows), markers_of(view, rows)
    beside: dict[int, int] = {}  # repairs that add as much stand side by side
    points = []
    for row in rows:
        difference, error, added = differences[row.id], interval_of(view, row), row.first.parameters["added"]
        beside[added] = beside.get(added, -1) + 1
        points.append((added * 1.03 ** beside[added], difference, row))
        axes.errorbar(
            *points[-1][:2],
            yerr=error,
            color=colours[row.compressor],
            marker=markers[row.first.recovery],
            markersize=6,
            capsize=2,
            elinewidth=0.8,
            linestyle="none",
            alpha=PALE if row.first.uses_labels else 1.0,
        )
    for compressor in colours:
        parent = next(view.parent(row) for row in rows if row.compressor == compressor)
        damage = view.difference(parent) if parent is not None else None
        if damage is not None:
            axes.axhline(-damage, color=colours[compressor], linewidth=0.9, linestyle="--")
    axes.axhline(0, color="#555", linewidth=0.8)
    added_axis(axes, [row.first.parameters["added"] for row in rows])
    axes.set(xlabel="added parameters", ylabel=f"{score_label(view)}, above compressed")
    draw_legend(axes, colours, markers, dashed="dense", pale=any(row.first.uses_labels for row in rows))
    say_names(axes, points)
    return figure


def accuracy_and_latency(view: View) -> Figure:
    """Mean accuracy against prefill and decode latency, with the Pareto front."""
    rows = [row for row in view.rows if row.mean(view.tasks) is not None and row.latency("prefill")]
    hollow = ""
    if len(rows) < 2:
        raise NothingToShow("runs that time their models (latency=default)")
    figure, panels = new_figure(2)
    colours, markers = colours_of(view, rows), markers_of(view, rows)
    for axes, part in zip(panels, PARTS, strict=True):
        points: list[tuple[float, float]] = []
        plain: list[tuple[float, float, Cell]] = []
        for row in rows:
            ratios, mean = row.latency(part), row.mean(view.tasks)
            if ratios is None or mean is None:
                continue
            ratio, merged = ratios
            plain.append((ratio, mean, row))
            hollow = "merged into the weights" if merged else hollow
            for value, filled in ((ratio, True), (merged, False)):
                if value is not None:
                    if not row.first.uses_labels:  # an upper bound is no model to be had
                        points.append((value, mean))
                    face = colours[row.compressor] if filled else "none"
                    look = {"facecolor": face, "edgecolor": colours[row.compressor]}
                    alpha = PALE if row.first.uses_labels else 1.0
                    axes.scatter(value, mean, s=36, marker=markers[row.first.recovery], alpha=alpha, **look)
        draw_noise(axes, view, plain, colours)
        front = pareto_front(points)
        axes.plot(*zip(*front, strict=True), color="#777", linewidth=0.8, linestyle="--", zorder=0)
        axes.set(xlabel=f"{part} latency, ratio to compressed", ylabel=score_label(view))
    pale = any(row.first.uses_labels for row in rows)
    draw_legend(panels[-1], colours, markers, dashed="Pareto front", hollow=hollow, pale=pale, bars=BARS)
    return figure


def perplexity_and_accuracy(view: View) -> Figure:
    """Perplexity against mean accuracy: how far the one tells the other. A line leads to each repair from its model."""
    measured = {
        corpus: [
            point for point in _points(view, functools.partial(Cell.perplexity, corpus=corpus)) if isfinite(point[0])
        ]
        for corpus in view.setting.corpora
    }
    measured = {corpus: points for corpus, points in measured.items() if len(points) > 1}
    if not measured:
        raise NothingToShow("two models or more with perplexity and tasks (evaluation.perplexity=[wikitext2])")
    figure, panels = new_figure(len(measured))
    every = [row for points in measured.values() for *_, row in points]
    colours, markers = colours_of(view, every), markers_of(view, every)
    for axes, (corpus, points) in zip(panels, measured.items(), strict=True):
        axes.set_xscale(scale_of([x for x, _, _ in points]))
        places = {row.id: (x, y) for x, y, row in points}
        for x, y, row in points:
            parent = view.parent(row)
            if row.first.role == REPAIRED and parent is not None and parent.id in places:
                ends = [places[parent.id], (x, y)]
                axes.plot(*zip(*ends, strict=True), color=colours[row.compressor], linewidth=0.7, alpha=0.5, zorder=0)
        draw_points(axes, points, colours, markers)
        draw_noise(axes, view, points, colours)
        axes.set(xlabel=f"{corpus} perplexity", ylabel=score_label(view))
        if axes.get_xscale() == "linear":
            span_at_least(axes, of="x")
    pale = any(row.first.uses_labels for row in every)
    draw_legend(panels[-1], colours if view.repaired else {}, markers if view.repaired else {}, pale=pale, bars=BARS)
    for axes, points in zip(panels, measured.values(), strict=True):
        say_names(axes, points)
    return figure


def accuracy_and_size(view: View) -> Figure:
    """Mean accuracy against bits per weight and sparsity."""
    rows = [row for row in view.rows if row.mean(view.tasks) is not None]
    weights = {(row.first.weights["bits_per_weight"], row.first.weights["sparsity"]) for row in rows}
    if len(weights) < 2:
        raise NothingToShow("two compressors or more (-m compressor=gptq4,gptq3,sparsegpt50)")
    figure, panels = new_figure(2)
    colours, markers = colours_of(view, rows), markers_of(view, rows)
    labels: dict[WeightFigure, str] = {"bits_per_weight": "bits per weight", "sparsity": "sparsity (share of zeros)"}
    drawn = [_points(view, functools.partial(Cell.weight, key=key)) for key in labels]
    for axes, label, points in zip(panels, labels.values(), drawn, strict=True):
        draw_points(axes, points, colours, markers)
        draw_noise(axes, view, points, colours)
        axes.set(xlabel=label, ylabel=score_label(view))
    pale = any(row.first.uses_labels for row in rows)
    draw_legend(panels[-1], colours if view.repaired else {}, markers if view.repaired else {}, pale=pale, bars=BARS)
    for axes, points in zip(panels, drawn, strict=True):
        say_names(axes, points)
    return figure


def _points(view: View, x: Callable[[Cell], float | None]) -> list[tuple[float, float, Cell]]:
    """Of each row that has both: a figure, and the mean of the view's tasks."""
    found = ((x(row), row.mean(view.tasks), row) for row in view.rows)
    return [(left, mean, row) for left, mean, row in found if left is not None and mean is not None]


def prompt_length_and_bank_size(view: View) -> Figure:
    """What longer prompts and larger banks earn."""
    length: dict[str, list[tuple[float, Cell]]] = {}
    size: dict[str, list[tuple[float, Cell]]] = {}
    for row in view.repaired:
        recovery = row.first.config["recovery"]
        if view.difference(row) is None or row.first.uses_labels:
            continue
        if isinstance(recovery.get("length"), int):
            length.setdefault(f"{row.compressor} + {row.first.recovery}", []).append((recovery["length"], row))
        if isinstance(recovery.get("lengths"), list):
            label = f"{row.compressor} + {row.first.recovery} ({row.first.selector or 'one'})"
            size.setdefault(label, []).append((len(recovery["lengths"]), row))
    panels_of = {
        label: {name: points for name, points in lines.items() if len({x for x, _ in points}) > 1}
        for label, lines in {"prompt length (tokens)": length, "bank size (prompts)": size}.items()
    }
    panels_of = {label: lines for label, lines in panels_of.items() if lines}
    if not panels_of:
        raise NothingToShow(
            "one repair with several lengths (-m recovery=prompt recovery.length=10,25,50) or bank sizes"
        )
    figure, panels = new_figure(len(panels_of))
    for axes, (label, lines) in zip(panels, panels_of.items(), strict=True):
        for number, (name, points) in enumerate(sorted(lines.items())):
            points = sorted(points, key=lambda point: point[0])
            errors = [interval_of(view, row) or [[0], [0]] for _, row in points]
            axes.errorbar(
                [x for x, _ in points],
                [value if (value := view.difference(row)) is not None else nan for _, row in points],
                yerr=[[error[side][0] for error in errors] for side in (0, 1)],
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                capsize=2,
                linewidth=1.2,
                label=name,
            )
        axes.axhline(0, color="#555", linewidth=0.8)
        axes.set_xticks(sorted({x for points in lines.values() for x, _ in points}))
        axes.set(xlabel=label, ylabel=f"{score_label(view)}, above compressed")
        axes.legend()
    return figure


def prompts_selected(view: View) -> Figure:
    """Which prompt of a bank the documents of each task were given."""
    rows = [row for row in view.repaired if any(len(counts) > 1 for counts in row.first.selection.values())]
    if not rows:
        raise NothingToShow("runs that choose among several prompts (recovery=idp)")
    figure, panels = new_figure(min(len(rows), PANELS), columns=2, height=0.28 * len(view.tasks) + 1.2)
    for axes, row in zip(panels, rows, strict=False):
        selection = row.first.selection
        tasks = [task for task in view.tasks if task in selection]
        titles = [view.headings[task] for task in tasks]
        left = [0.0] * len(tasks)
        names = list(selection[tasks[0]])
        for number, name in enumerate(names):
            counts = [selection[task].get(name, 0) for task in tasks]
            shares = [count / max(sum(selection[task].values()), 1) for count, task in zip(counts, tasks, strict=True)]
            axes.barh(
                titles,
                shares,
                left=left,
                color=COLOURS[number % len(COLOURS)],
                label=name,
                height=0.72,
            )
            left = [a + b for a, b in zip(left, shares, strict=True)]
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set(xlim=(0, 1), xlabel="share of documents")
        axes.set_title(row.name, fontsize=9)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=min(len(names), 3), fontsize=7)
    return figure


def transfer_matrix(view: View) -> Figure:
    """What repairs learned elsewhere are worth here: in accuracy, and in perplexity of the first text that was read.

    No colour means no difference. The strongest one is that of the largest, of two standard errors at least.
    """
    found: dict[str, dict[tuple[str, str], list[float]]] = {"accuracy": {}, "perplexity": {}}
    noise = {"accuracy": 0.0, "perplexity": LEAST_PERPLEXITY}
    differing: set[tuple[str, str]] = set()
    places: dict[str, int] = {}  # of compressors, in the tables' order
    moved: dict[str, str] = {}  # what was learned elsewhere -> where
    corpus = next(iter(view.setting.corpora), None)
    for row in view.rows:
        places.setdefault(row.first.compressor, len(places))
        parent = view.parent(row)
        if row.first.role != REPAIRED or parent is None:
            continue
        learned = row.first.transfer or {
            "kind": row.first.recovery,
            "compressor": row.first.compressor,
            "corpus": row.first.config["corpus"]["name"],
        }
        compressor = "dense" if learned["compressor"] == "none" else learned["compressor"] or "?"
        origin = f"{learned['kind']} from {compressor}, {learned['corpus'] or '?'}"
        if row.first.transfer is not None:
            moved[origin] = learned["compressor"]
        if (difference := view.difference(row)) is not None:
            found["accuracy"].setdefault((origin, row.compressor), []).append(difference)
            if (reach := interval_of(view, row)) is not None:
                noise["accuracy"] = max(noise["accuracy"], *(ERRORS * side[0] for side in reach))
                if view.compared[row.id].differs():
                    differing.add((origin, row.compressor))
        before, after = (each.perplexity(corpus) if corpus else None for each in (parent, row))
        if before and after and isfinite(before) and isfinite(after):
            found["perplexity"].setdefault((origin, row.compressor), []).append(after / before - 1)
    origins = sorted(moved, key=lambda origin: (places.get(moved[origin], len(places)), origin))
    known = {target for part in found.values() for origin, target in part if origin in moved}
    targets = [row.compressor for row in view.rows if row.first.role != REPAIRED and row.compressor in known]
    panels = {name: part for name, part in found.items() if any(origin in moved for origin, _ in part)}
    if not panels:
        raise NothingToShow("runs of repairs learned elsewhere (recovery=transfer recovery.from=<run>)")
    width = len(panels) * (1.1 * len(targets) + 1.2) + 2.0
    figure, axes_of = new_figure(len(panels), width=width, height=0.5 * len(origins) + 1.6)
    for axes, (name, part) in zip(axes_of, panels.items(), strict=True):
        values = [
            [sum(each) / len(each) if (each := part.get((origin, target))) else float("nan") for target in targets]
            for origin in origins
        ]
        largest = max((abs(value) for row in values for value in row if value == value), default=0)
        largest = max(largest, noise[name]) or 1e-9
        better = "RdBu" if name == "accuracy" else "RdBu_r"
        axes.imshow(values, cmap=better, vmin=-largest, vmax=largest, aspect="auto")
        axes.grid(visible=False)
        axes.set_xticks(
            range(len(targets)), ["dense" if each == "none" else each for each in targets], rotation=30, ha="right"
        )
        axes.set_yticks(range(len(origins)), origins if axes is axes_of[0] else [""] * len(origins))
        quantity = score_label(view) if name == "accuracy" else f"{corpus} perplexity"
        axes.set(xlabel="applied to")
        bold = "\nbold: beyond noise; colours span two standard errors at least" if name == "accuracy" else "\n"
        axes.set_title(f"{quantity}, minus the same model without it{bold}", fontsize=9)
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                if value == value:
                    colour = "white" if abs(value) > 0.6 * largest else "black"
                    text = f"{value:+.3f}" if name == "accuracy" else f"{100 * value:+.0f} %"
                    beyond = name == "accuracy" and (origins[y], targets[x]) in differing
                    look: dict[str, Any] = {
                        "color": colour,
                        "fontsize": 8,
                        "fontweight": "bold" if beyond else "normal",
                    }
                    axes.text(x, y, text, ha="center", va="center", **look)
    return figure


PLOTS: dict[str, Callable[[View], Any]] = {
    "Recovery against added parameters": recovery_and_parameters,
    "Damage brought back against cost": frontier,
    "Accuracy against latency": accuracy_and_latency,
    "Perplexity against accuracy": perplexity_and_accuracy,
    "Accuracy against bits and sparsity": accuracy_and_size,
    "Prompt length and bank size": prompt_length_and_bank_size,
    "Held-out loss while training": training_curves,
    "Prompts selected": prompts_selected,
    "Transfer": transfer_matrix,
    "Weights of the layers": weights_of_layers,
    "Similarity to dense, by layer": similarity_to_dense,
}
