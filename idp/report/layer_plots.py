"""Plots by layer: what compression did to the weights, and how alike models stay to the dense one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idp.report.drawing import COLOURS, NothingToShow, line_style, new_figure, scale_of, span_at_least
from idp.report.layers import depth_and_part, similarity, weights_by_layer
from idp.report.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def weights_of_layers(view: View) -> Figure:
    """Sparsity and weight change of each block of the compressed models."""
    lines: dict[str, dict[str, dict[int, list[float]]]] = {"sparsity": {}, "reconstruction_error": {}}
    for row in view.plain:
        for name, figures in weights_by_layer(row.first).items():
            place = depth_and_part(name)
            for key in lines:
                if place is not None and figures.get(key) is not None:
                    lines[key].setdefault(row.compressor, {}).setdefault(place[0], []).append(figures[key])
    if not any(lines.values()):
        raise NothingToShow("compressed models whose products are in the store (store=...)")
    figure, panels = new_figure(2)
    labels = {"sparsity": "sparsity", "reconstruction_error": "weight change (relative squared error)"}
    for axes, (key, label) in zip(panels, labels.items(), strict=True):
        for number, (compressor, by_depth) in enumerate(sorted(lines[key].items())):
            depths = sorted(by_depth)
            means = [sum(by_depth[depth]) / len(by_depth[depth]) for depth in depths]
            axes.plot(depths, means, label=compressor, **line_style(number))
        axes.set(xlabel="layer", ylabel=label)
        span_at_least(axes)
    changes = [
        value for by_depth in lines["reconstruction_error"].values() for each in by_depth.values() for value in each
    ]
    panels[1].set_yscale(scale_of(changes))
    panels[1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), ncols=1 + len(lines["sparsity"]) // 14)
    return figure


def similarity_to_dense(view: View) -> Figure:
    """How alike attention and activations are to the dense model's, by layer: a column of panels a compressor."""
    found = {row.id: (row, like) for row in view.rows if (like := similarity(row.first)) is not None}
    if not found:
        raise NothingToShow("`python -m idp.analyze similarity record=<run>` for the runs to compare")
    first = next(iter(found.values()))[1]
    kinds = [(kind, measure) for kind in ("attention", "activation") for measure in first.get(kind, {})]
    columns = list(dict.fromkeys(row.compressor for row, _ in found.values()))
    repairs = list(dict.fromkeys(row.recovery for row in view.rows if row.recovery != "none"))
    figure, panels = new_figure(len(kinds) * len(columns), columns=len(columns), height=2.7)
    for number, axes in enumerate(panels):
        (kind, measure), compressor = kinds[number // len(columns)], columns[number % len(columns)]
        for row, like in (each for each in found.values() if each[0].compressor == compressor):
            repair = row.recovery
            colour = "#111111" if repair == "none" else COLOURS[repairs.index(repair) % len(COLOURS)]
            for values, style in ((like, "-"), (like["control"] or {}, ":")):
                if measure in values.get(kind, {}):
                    axes.plot(like["layers"], values[kind][measure], color=colour, linestyle=style, linewidth=1.2)
        axes.set(xlabel="layer", ylabel=f"{kind}: {measure.replace('_', ' ')}")
        if number < len(columns):
            axes.set_title("dense" if compressor == "none" else compressor)
    for start in range(0, len(panels), len(columns)):  # one scale for a row of panels
        row_of_panels = panels[start : start + len(columns)]
        limits = [axes.get_ylim() for axes in row_of_panels]
        for axes in row_of_panels:
            axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
            span_at_least(axes)
    shown = {row.recovery for row, _ in found.values()}
    entries = [("no repair", "#111111", "-")] if "none" in shown else []
    entries += [(name, COLOURS[number % len(COLOURS)], "-") for number, name in enumerate(repairs) if name in shown]
    if any(like["control"] for _, like in found.values()):
        entries.append(("as long a prompt, not trained", "#777777", ":"))
    for name, colour, style in entries:
        panels[0].plot([], [], label=name, color=colour, linestyle=style)
    figure.legend(loc="outside lower center", ncols=4)
    return figure
