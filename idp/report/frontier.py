"""The cheapest repair for a compressed model: what each brings back against what it costs, training-free ones first."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from idp.records.cell import PARTS, Cell
from idp.records.differences import SHARE, difference_to, signed
from idp.report.comparisons import Difference
from idp.report.drawing import (
    NothingToShow,
    added_axis,
    colours_of,
    draw_legend,
    markers_of,
    new_figure,
    pareto_front,
    say_names,
    score_label,
)
from idp.report.formats import MISSING, Column, Entry, Table, percent
from idp.report.nine_tasks import SEED_ONLY, difference_entry
from idp.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Reach = tuple[float, float, float]  # a value and its 95 % interval
FEWEST = 2  # repairs of one compressed model that make a frontier
LEAST_SECONDS = 0.1


def studies(view: View) -> list[tuple[Cell, list[Cell]]]:
    """Each compressed model that several repairs were made of, with these: training-free ones first, then by seconds.

    A choice that uses the labels is none of them: it is no repair to be had.
    """
    found = []
    for compressed in view.plain:
        repairs = [row for row in view.repaired if view.parent(row) is compressed and not row.first.uses_labels]
        if compressed.first.role == "compressed" and len(repairs) >= FEWEST:
            found.append((compressed, sorted(repairs, key=lambda row: (trained(row), seconds(view, row) or 0.0))))
    return found


def trained(row: Cell) -> bool:
    """Whether anything of a repair was trained."""
    return bool(row.first.training)


def seconds(view: View, row: Cell) -> float | None:
    """What making a repair took, and fitting what chooses among its prompts: a mean over seeds; None if not known.

    All counts that was made for it, whenever that was: what the repair is made upon, the dense model's predictions and
    text where it learns from these, the prompts' losses where a choice is fitted to them.
    """
    stages = {record["idp"]["name"]: record["idp"]["stages"] for record in view.found.records}
    taken = []
    for model in row.members:
        of_run = stages.get(model.runs[0], {})
        made = [
            stage.get("total_seconds", stage.get("seconds"))
            for name in ("recover", "select")
            if (stage := of_run.get(name))
        ]
        known = [value for value in made if value is not None]
        if not made or len(known) < len(made):
            return None
        taken.append(sum(known))
    return sum(taken) / len(taken)


@functools.lru_cache(maxsize=8)
def frontier_table(view: View) -> Table:
    """Of each compressed model its repairs, the cheapest first: effect with interval, and what it costs."""
    columns = [
        Column("compressor", "compressor"),
        Column("repair", "repair"),
        Column("trained", "trained"),
        Column("brought back", "damage brought back (95 % CI)"),
        Column("difference", difference_to("compressed", view.unit)),
        *(Column(text, f"nats brought back, {text} (95 % CI)") for text in _texts(view)),
        Column("added", "added parameters"),
        Column("seconds", "seconds to make"),
        *(Column(part, f"{part} ratio") for part in PARTS),
    ]
    lines = []
    for compressed, repairs in studies(view):
        for row in repairs:
            share, why = view.brought_back(row)
            effect, made, added = _effect(view, row), seconds(view, row), row.first.parameters["added"]
            line = {
                "compressor": Entry(compressed.name),
                "repair": Entry(row.recovery),
                "trained": Entry("yes" if trained(row) else "no"),
                "brought back": _share_entry((share.share, share.low, share.high)) if share else Entry(why),
                "difference": difference_entry(view, row, effect) if effect is not None else MISSING,
                "added": Entry(f"{added:,}", added),
                "seconds": Entry(f"{made:,.1f}", made) if made is not None else MISSING,
            }
            line |= {text: _share_entry(found) for text in _texts(view) if (found := _share_of_text(row, text))}
            for part in PARTS:
                ratios = row.latency(part)
                merged = f" (merged {ratios[1]:.2f})" if ratios and ratios[1] else ""
                line[part] = Entry(f"{ratios[0]:.2f}{merged}", ratios[0]) if ratios else MISSING
            lines.append(line)
    notes = verdicts(view)
    if any(row.of_one_seed for _, repairs in studies(view) for row in repairs):
        notes.append(f"{SEED_ONLY} of one run: the interval holds for this seed only")
    if _texts(view):
        notes.append("nats brought back: of the loss that compression added on running text, paired over windows")
    if any(line[part] is MISSING for line in lines for part in PARTS):
        notes.append("ratios are of latency to the compressed model; where none stands, nothing was timed")
    return Table("What repairs bring back and what they cost", columns, lines, notes)


def verdicts(view: View) -> list[str]:
    """One sentence for each compressed model with several repairs: which is worth its cost, or that none is needed."""
    return [_verdict(view, compressed, repairs) for compressed, repairs in studies(view)]


def best_repair(view: View) -> Cell | None:
    """The repair that gains most over its compressed model; None where none is compared."""
    rows = [row for _, repairs in studies(view) for row in repairs]
    known = [(effect.difference, row) for row in rows if (effect := _effect(view, row)) is not None]
    return max(known, key=lambda each: each[0])[1] if known else None


def frontier(view: View) -> Figure:
    """What repairs bring back against added parameters, seconds of repair and latency, with the Pareto front of each.

    It is the share of the damage where every compressed model has damage beyond noise, else the difference.
    """
    found = studies(view)
    if not found:
        raise NothingToShow("two repairs or more of one compressed model (+experiment=frontier)")
    rows = [row for _, repairs in found for row in repairs]
    shares = {row.id: _share(view, row) for row in rows}
    as_share = all(shares.values())
    heights = shares if as_share else {row.id: _points(view, row) for row in rows}
    measures: dict[str, Callable[[Cell], float | None]] = {
        "added parameters": lambda row: row.first.parameters["added"],
        "seconds to make the repair": functools.partial(seconds, view),
        "prefill latency, ratio to compressed": lambda row: ratios[0] if (ratios := row.latency("prefill")) else None,
    }
    points = {
        label: [(x, height, row) for row in rows if (x := of(row)) is not None and (height := heights[row.id])]
        for label, of in measures.items()
    }
    points = {label: each for label, each in points.items() if each}
    if not points:
        raise NothingToShow("runs with baselines=true, whose repairs are compared with what they repair")
    figure, panels = new_figure(len(points), columns=3, width=4.4 * len(points) + 1.2)
    colours, markers = colours_of(view, rows), markers_of(view, rows)
    for axes, (label, each) in zip(panels, points.items(), strict=True):
        _draw(axes, each, colours, markers)
        axes.set_xlabel(label)
    if as_share:
        for axes in panels:
            axes.axhline(1, color="#777", linewidth=0.9, linestyle="--")
    _scale(panels, points)
    what = "damage brought back" if as_share else f"{score_label(view)}, above compressed"
    panels[0].set_ylabel(f"{what} (95 % interval)")
    if as_share:
        from matplotlib.ticker import PercentFormatter

        for axes in panels:
            axes.yaxis.set_major_formatter(PercentFormatter(1))
    draw_legend(panels[-1], colours, markers, dashed="dense, Pareto front" if as_share else "Pareto front")
    for axes, each in zip(panels, points.values(), strict=True):
        say_names(axes, [(x, height[0], row) for x, height, row in each])
    return figure


def _draw(
    axes: Axes, points: list[tuple[float, Reach, Cell]], colours: dict[str, str], markers: dict[str, str]
) -> None:
    for x, (value, low, high), row in points:
        axes.errorbar(
            x,
            value,
            yerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
            color=colours[row.compressor],
            marker=markers[row.first.recovery],
            markersize=6,
            capsize=2,
            elinewidth=0.8,
            linestyle="none",
        )
    for compressor, colour in colours.items():
        front = pareto_front([(x, height[0]) for x, height, row in points if row.compressor == compressor])
        if front:
            axes.plot(*zip(*front, strict=True), color=colour, linewidth=0.8, linestyle="--", alpha=0.6, zorder=0)
    axes.axhline(0, color="#555", linewidth=0.8)


def _scale(panels: list[Axes], points: dict[str, list[tuple[float, Reach, Cell]]]) -> None:
    """Costs differ by orders of magnitude; ratios of latency do not. All panels have one height."""
    from matplotlib.ticker import LogFormatter

    for axes, (label, each) in zip(panels, points.items(), strict=True):
        values = [x for x, _, _ in each]
        if label == "added parameters":
            added_axis(axes, [int(value) for value in values])
        elif label.startswith("seconds"):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(LogFormatter())
            axes.xaxis.set_minor_formatter(LogFormatter())  # which names few, and where decades are many none
            axes.set_xlim(max(LEAST_SECONDS, min(values)) / 1.6, 1.6 * max(*values, LEAST_SECONDS))
    limits = [axes.get_ylim() for axes in panels]
    for axes in panels:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _verdict(view: View, compressed: Cell, repairs: list[Cell]) -> str:
    damage = _effect(view, compressed)
    if damage is None:
        return f"{compressed.name}: dense was not measured, so what compression cost is not known"
    before = view.parent(compressed)
    name = f"{compressed.name} differs from {before.name if before else 'dense'} by {_signed(view, damage)}"
    if damage.low <= 0 <= damage.high:
        within = f"{name}, which is within noise"
        return f"{within}; {said}" if (said := _of_texts(view, repairs)) else f"nothing to repair here: {within}"
    if damage.difference > 0:
        return f"nothing to repair here: {name}, a gain"
    effects = {row.id: effect for row in repairs if (effect := _effect(view, row)) is not None}
    helping = [row for row in repairs if row.id in effects and effects[row.id].differs and effects[row.id].low > 0]
    if not helping:
        least = min((effect.detectable for effect in effects.values() if effect.detectable), default=None)
        room = f"; so many documents show a gain of {_amount(view, least)} or more" if least is not None else ""
        return f"{name}; no repair here brings back more than noise{room}"
    cheapest, most = helping[0], max(helping, key=lambda row: effects[row.id].difference)
    said = f"{name}; {most.recovery} brings back most, {_gain(view, most, effects[most.id])}"
    if cheapest is most:
        return f"{said}, and is the cheapest that brings back more than noise"
    gain = _gain(view, cheapest, effects[cheapest.id])
    return f"{said}; the cheapest that brings back more than noise is {cheapest.recovery}, {gain}"


def _of_texts(view: View, repairs: list[Cell]) -> str:
    """Which repair brings back most of what compression took on running text; empty where it took nothing there."""
    parts = []
    for text in view.setting.corpora:
        known = {row.recovery: share for row in repairs if (share := _share_of_text(row, text)) is not None}
        if known:
            most = max(known, key=lambda name: known[name][0])
            if known[most][1] > 0:
                parts.append(f"{most} brings back most, {_share_entry(known[most]).text} on {text}")
            else:
                parts.append(f"no repair brings any back on {text}")
    return f"on text it lost more than noise, of which {' and '.join(parts)}" if parts else ""


def _gain(view: View, row: Cell, effect: Difference) -> str:
    share = _share(view, row)
    return f"{_signed(view, effect)}" + (f", {_share_entry(share).text} of the damage" if share else "")


def _signed(view: View, effect: Difference) -> str:
    value, low, high = (signed(each, view.unit) for each in (effect.difference, effect.low, effect.high))
    return f"{value}{_unit(view)} (95 % CI {low} to {high})"


def _amount(view: View, value: float) -> str:
    return f"{signed(value, view.unit).lstrip('+')}{_unit(view)}"


def _unit(view: View) -> str:
    return " points" if view.unit == SHARE else ""


def _effect(view: View, row: Cell) -> Difference | None:
    """A row against what it was made from, in the mean over tasks."""
    compared = view.compared.get(row.id)
    return compared.mean if compared is not None else None


def _points(view: View, row: Cell) -> Reach | None:
    effect = _effect(view, row)
    return (effect.difference, effect.low, effect.high) if effect is not None else None


def _share(view: View, row: Cell) -> Reach | None:
    found, _ = view.brought_back(row)
    return (found.share, found.low, found.high) if found is not None else None


def _texts(view: View) -> list[str]:
    """Texts of whose damage some repair brought back a share that is known."""
    rows = [row for _, repairs in studies(view) for row in repairs]
    return [text for text in view.setting.corpora if any(_share_of_text(row, text) for row in rows)]


def _share_of_text(row: Cell, text: str) -> Reach | None:
    """Of the nats per token that compression took there: a mean over seeds, and of the ends of their intervals."""
    shares = []
    for model in row.members:
        against = model.comparisons.get("compressed")
        test = (against.get("texts") or {}).get(text) if against is not None else None
        if test is None or (found := test.get("damage_brought_back")) is None:
            return None
        shares.append((found["share"], found["low"], found["high"]))
    value, low, high = (sum(each) / len(shares) for each in zip(*shares, strict=True))
    return value, low, high


def _share_entry(share: Reach) -> Entry:
    value, low, high = share
    return Entry(f"{percent(value)} ({percent(low)} to {percent(high)})", value, low=low, high=high)
