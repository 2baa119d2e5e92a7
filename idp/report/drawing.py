"""What all plots share: their style, panels, axes, colours, markers, names beside points, and legends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.records.cell import Cell
from idp.records.measured import COMPRESSED, DENSE, REPAIRED
from idp.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers; black is for dense.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#8A8A8A", "#5D4037", "#B8A900")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p")
PLACES = tuple(  # of a name beside its point, in points: the nearest first, to the right before the left
    (side * dx, dy, "left" if side > 0 else "right")
    for dx, dy in ((5, 0), (4, 6), (4, -6), (3, 11), (3, -11))
    for side in (1, -1)
)
ROLES = (DENSE, COMPRESSED, REPAIRED)
PALE = 0.35  # of what is no method: an upper bound that uses the labels
NAMED = 60  # points at most in a plot that names them
PANELS = 6  # at most, of plots with one for each model
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "idp",
}


class NothingToShow(Exception):
    """A plot's data are not there; says what runs it wants."""


@contextmanager
def plot_style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def save_figure(draw: Callable[[View], Figure], view: View, place: Path) -> Path:
    """Draws a plot of a view and writes `<place>.png` and `<place>.svg`; gives the PNG.

    Raises:
        NothingToShow: the plot's data are not there.
    """
    with plot_style():
        figure = draw(view)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # it is laid out: not again for every file
        place.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(place.with_name(f"{place.name}.svg"), metadata={"Date": None}, bbox_inches="tight")
        figure.savefig(place.with_name(f"{place.name}.png"), dpi=144, bbox_inches="tight")
    return place.with_name(f"{place.name}.png")


def new_figure(
    panels: int, columns: int = 2, width: float | None = None, height: float = 3.8
) -> tuple[Figure, list[Axes]]:
    """A figure that no window or global state knows of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(width or (6.4 if columns == 1 else 5.0 * columns), height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[panels:]:
        unused.remove()
    return figure, axes[:panels]


def colours_of(view: View, rows: Sequence[Cell]) -> dict[str, str]:
    """A colour for each compressor of `rows`, the same one in every plot of the view."""
    others = [name for name in dict.fromkeys(row.compressor for row in view.rows) if name != "none"]
    shown = dict.fromkeys(row.compressor for row in rows)
    return {name: "#111111" if name == "none" else COLOURS[others.index(name) % len(COLOURS)] for name in shown}


def markers_of(view: View, rows: Sequence[Cell]) -> dict[str, str]:
    """A marker for each kind of repair in `rows`, the same one in every plot of the view; "none" has the first."""
    kinds = ["none", *sorted({row.first.recovery for row in view.rows} - {"none"})]
    shown = {row.first.recovery for row in rows}
    return {kind: MARKERS[number % len(MARKERS)] for number, kind in enumerate(kinds) if kind in shown}


def line_style(number: int) -> dict[str, Any]:
    styles = ("-", "--", ":", "-.")
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": styles[number // len(COLOURS) % 4], "linewidth": 1.2}


def draw_points(
    axes: Axes, points: Sequence[tuple[float, float, Cell]], colours: dict[str, str], markers: dict[str, str]
) -> None:
    kinds: dict[tuple[str, str, bool], list[tuple[float, float]]] = {}
    for x, y, row in points:
        kinds.setdefault((row.compressor, row.first.recovery, row.first.uses_labels), []).append((x, y))
    for (compressor, recovery, uses_labels), places in kinds.items():
        look: dict[str, Any] = {
            "color": colours[compressor],
            "marker": markers[recovery],
            "alpha": PALE if uses_labels else 1,
        }
        axes.scatter(*zip(*places, strict=True), s=34, linewidth=0, **look)


def draw_noise(axes: Axes, view: View, points: Sequence[tuple[float, float, Cell]], colours: dict[str, str]) -> None:
    """At each mean score the 95 % interval of its difference to the model that it was made from.

    Paired over documents, that is the noise in which two points differ; it also keeps the axis from showing less.
    """
    bars: dict[str, list[tuple[float, float, float]]] = {}
    for x, y, row in points:
        if (reach := interval_of(view, row)) is not None:
            bars.setdefault(row.compressor, []).append((x, y - reach[0][0], y + reach[1][0]))
    for compressor, each in bars.items():
        axes.vlines(*zip(*each, strict=True), color=colours[compressor], linewidth=0.8, alpha=0.45, zorder=0)


def span_at_least(axes: Axes, share: float = 0.02, of: str = "y") -> None:
    """Widens an axis that spans less than a share of its largest value: so little would fill it like a great deal."""
    low, high = getattr(axes, f"get_{of}lim")()
    wanted = share * max(abs(low), abs(high))
    if high - low < wanted and getattr(axes, f"get_{of}scale")() == "linear":
        middle = (low + high) / 2
        getattr(axes, f"set_{of}lim")(middle - wanted / 2, middle + wanted / 2)
    getattr(axes, f"{of}axis").get_major_formatter().set_useOffset(False)


def say_names(axes: Axes, points: Sequence[tuple[float, float, Cell]]) -> None:
    """Names what colour and shape do not tell beside its point, where it covers nothing; without room it stays unnamed.

    That is unrepaired models, and the settings of repairs of one kind on one compressed model.
    """
    from matplotlib.transforms import Bbox

    alike = Counter((row.compressor, row.first.recovery) for _, _, row in points)

    if len(points) > NAMED:
        return
    figure = axes.figure
    figure.draw_without_rendering()
    renderer, radius = figure.canvas.get_renderer(), 3.2 * figure.dpi / 72
    centres = axes.transData.transform([(x, y) for x, y, _ in points])
    taken = [Bbox([centre - radius, centre + radius]) for centre in centres]
    inside = axes.get_window_extent(renderer)
    for x, y, row in sorted(points, key=lambda point: (ROLES.index(point[2].first.role), -point[1])):
        name = row.name if row.first.role != REPAIRED else row.recovery.partition(" ")[2]
        if row.first.role == REPAIRED and alike[row.compressor, row.first.recovery] == 1:
            continue
        for dx, dy, ha in PLACES:
            label = axes.annotate(
                name, (x, y), (dx, dy), textcoords="offset points", ha=ha, va="center", fontsize=7, color="#444"
            )
            box = label.get_window_extent(renderer)
            if inside.x0 < box.x0 and box.x1 < inside.x1 + radius and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            label.remove()


def interval_of(view: View, row: Cell) -> list[list[float]] | None:
    comparison = view.compared.get(row.id)
    if comparison is None or comparison.mean is None:
        return None
    found = comparison.mean
    return [[max(0.0, found.difference - found.low)], [max(0.0, found.high - found.difference)]]


def added_axis(axes: Axes, added: list[int]) -> None:
    """Logarithmic; a repair that adds nothing stands at the left end."""
    from matplotlib.ticker import EngFormatter, FixedLocator, NullFormatter

    positive = [value for value in added if value]
    if not positive:
        return
    least, most = min(positive), max(positive)
    decade = 10 ** (len(str(least)) - 1)
    steps = (1,) if most > 300 * least else (1, 2, 5)
    ticks = [step * 10**power for power in range(len(str(most)) + 1) for step in steps]
    ticks = [tick for tick in ticks if decade <= tick <= 1.6 * most]
    if len(positive) < len(added):
        axes.set_xscale("symlog", linthresh=decade, linscale=0.4)
        axes.set_xlim(-0.4 * decade, 1.6 * most)
        ticks = [0, *ticks]
    else:
        axes.set_xscale("log")
        axes.set_xlim(least / 1.6, 1.6 * most)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())


def score_label(view: View) -> str:
    """What an axis of mean scores is called; stand-ins are marked."""
    if len(view.tasks) == 1:
        return view.headings[view.tasks[0]]
    return view.headings["mean"].replace(f"mean of {len(view.tasks)}", f"mean of {len(view.tasks)} tasks")


def scale_of(values: Sequence[float]) -> str:
    """Logarithmic where values differ by an order of magnitude."""
    return "log" if values and min(values) > 0 and max(values) > 10 * min(values) else "linear"


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points than which none is both faster and better."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def draw_legend(
    axes: Axes,
    colours: dict[str, str],
    markers: dict[str, str],
    dashed: str = "",
    hollow: str = "",
    pale: bool = False,
    bars: str = "",
) -> None:
    """What colours and markers stand for; `pale`: whether an upper bound is among the points."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker="o", linestyle="none", color=colour, label="dense" if name == "none" else name)
        for name, colour in colours.items()
    ]
    handles += [
        Line2D([], [], marker=marker, linestyle="none", color="#777", label="no repair" if kind == "none" else kind)
        for kind, marker in markers.items()
    ]
    if hollow:
        handles.append(Line2D([], [], marker="o", linestyle="none", fillstyle="none", color="#777", label=hollow))
    if pale:
        look: dict[str, Any] = {"marker": "o", "linestyle": "none", "alpha": PALE}
        handles.append(Line2D([], [], color="#777", label="pale: upper bound (uses the labels)", **look))
    if bars:
        handles.append(Line2D([], [], marker="|", linestyle="none", color="#777", markersize=9, label=bars))
    if dashed:
        handles.append(Line2D([], [], linestyle="--", linewidth=0.9, color="#777", label=dashed))
    if handles:
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.02), ncols=1 + len(handles) // 18)
