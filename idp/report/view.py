"""One setting as the tables, plots and the page show it: its rows, and each compared with its parent."""

from __future__ import annotations

from dataclasses import dataclass

from idp.report.cells import Cell, cells, task_order
from idp.report.collect import Collection, Unfinished
from idp.report.comparisons import Comparison, compare
from idp.report.measured import REPAIRED, Setting


@dataclass
class View:
    """Runs that may be compared with one another."""

    found: Collection
    setting: Setting
    rows: list[Cell]
    compared: dict[str, Comparison]
    unfinished: list[Unfinished]
    title: str = ""  # model, dtype, documents

    def __post_init__(self) -> None:
        self._by_id = {row.id: row for row in self.rows}

    @property
    def tasks(self) -> list[str]:
        """In the paper's order."""
        return task_order(self.setting.tasks)

    @property
    def repaired(self) -> list[Cell]:
        """The rows of repairs."""
        return [row for row in self.rows if row.first.role == REPAIRED]

    @property
    def plain(self) -> list[Cell]:
        """The rows of dense and compressed models without a repair."""
        return [row for row in self.rows if row.first.role != REPAIRED]

    @property
    def dense(self) -> Cell | None:
        """The dense row."""
        return next((row for row in self.rows if row.first.role == "dense"), None)

    def parent(self, row: Cell) -> Cell | None:
        """What the row's models were made from, where that was measured."""
        return self._by_id.get(row.parent or "")

    def difference(self, row: Cell) -> float | None:
        """By how much the row's mean over tasks is above its parent's."""
        parent = self.parent(row)
        values = [each.mean(self.tasks) for each in (row, parent)] if parent else [None]
        return None if None in values else values[0] - values[1]

    def brought_back(self, row: Cell) -> tuple[float | None, str]:
        """The share of the damage that a repair brings back, and why there is none to tell."""
        compressed = self.parent(row)
        if row.first.role != REPAIRED or compressed is None or compressed.first.role == "dense":
            return None, ""
        dense = self.parent(compressed)
        if dense is None:
            return None, "dense not measured"
        values = [each.mean(self.tasks) for each in (dense, compressed, row)]
        damage = self.compared[compressed.id].mean if compressed.id in self.compared else None
        if None in values or damage is None:
            return None, ""
        if not damage.high < 0:
            return None, "no damage beyond noise"
        before, broken, after = values
        return (after - broken) / (before - broken), ""


def views(found: Collection) -> list[View]:
    """Every setting, the one with the most models first."""
    made = []
    left = list(found.unfinished)
    for setting in sorted(found.settings, key=lambda setting: (-len(found.of(setting)), setting.id)):
        mine = [run for run in left if run.name.startswith(f"{setting.model}-")]
        left = [run for run in left if run not in mine]
        rows = cells(found, setting)
        made.append(View(found, setting, rows, compare(rows, task_order(setting.tasks)), mine, setting.title))
    titles = [view.title for view in made]
    for number, view in enumerate(made):
        if titles.count(titles[number]) > 1:
            view.title = f"{view.title} (sample {titles[: number + 1].count(titles[number])})"
    return made
