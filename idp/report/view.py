"""One setting as the tables, plots and the page show it: its rows, and each compared with its parent."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idp.records.cell import Cell
from idp.records.cells import cells, groups, task_order
from idp.records.collect import Collection, Unfinished
from idp.records.differences import NO_DAMAGE, SCORE, SHARE
from idp.records.measured import REPAIRED, Setting
from idp.report.comparisons import Comparison, compare, compare_to_dense, share_of_damage

if TYPE_CHECKING:
    from idp.stats.damage import Share


@dataclass(eq=False)
class View:
    """Runs that may be compared with one another; tables of a view are made once (it is hashed by identity)."""

    found: Collection
    setting: Setting
    rows: list[Cell]
    compared: dict[str, Comparison]  # of each row with what it was made from
    to_dense: dict[str, Comparison]  # and with dense
    unfinished: list[Unfinished]
    title: str = ""  # model, dtype, documents

    def __post_init__(self) -> None:
        self._by_id = {row.id: row for row in self.rows}

    @property
    def tasks(self) -> list[str]:
        """In the paper's order."""
        return task_order(self.setting.tasks)

    @functools.cached_property
    def unit(self) -> str:
        """Of differences, as `records.differences` has it: points where every run's scores are shares."""
        units = {each["unit"] for record in self.found.records for each in record["idp"].get("comparisons") or []}
        return SHARE if units == {SHARE} else SCORE

    @property
    def groups(self) -> dict[str, list[str]]:
        """Groups of tasks of which all were measured: the paper's, and those that the runs name."""
        return groups(self.tasks, self.setting.groups)

    @property
    def headings(self) -> dict[str, str]:
        """What each column of scores is called, by its key; where another task's documents stand in, it says so."""
        ran = {task: self.setting.sample[f"task:{task}"][0] for task in self.tasks}
        titles = {task: task if runs == task else f"{task} (stand-in: {runs})" for task, runs in ran.items()}
        means = {f"mean {name}": (f"mean {name}", of) for name, of in self.groups.items()} if len(ran) > 1 else {}
        means["mean"] = "mean" if len(ran) == 1 else f"mean of {len(ran)}", list(ran)
        for key, (title, members) in means.items():
            count = sum(ran[task] != task for task in members)
            marked = f"{title} ({count} stand-in{'s' if count > 1 else ''})" if count else title
            titles[key] = marked
        return titles

    def members(self, key: str) -> list[str]:
        """The tasks behind a column of scores: a task, `mean GROUP` or `mean`."""
        return self.tasks if key == "mean" else self.groups.get(key.removeprefix("mean "), [key])

    def to_compressed(self, row: Cell) -> Comparison | None:
        """A repair against the compressed model that it repairs; None of others, and where that was not measured."""
        return self.compared.get(row.id) if row.first.role == REPAIRED and row.first.compressor != "none" else None

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
        after, before = row.mean(self.tasks), parent.mean(self.tasks) if parent else None
        return None if after is None or before is None else after - before

    def brought_back(self, row: Cell) -> tuple[Share | None, str]:
        """The share of the damage that a repair brings back, and why there is none to tell."""
        compressed = self.parent(row)
        if row.first.role != REPAIRED or compressed is None or compressed.first.role == "dense":
            return None, ""
        dense = self.parent(compressed)
        if dense is None:
            return None, "dense not measured"
        damage = self.compared[compressed.id].mean if compressed.id in self.compared else None
        if damage is None or self.compared[row.id].mean is None:
            return None, ""
        found = share_of_damage(dense, compressed, row, self.tasks) if damage.high < 0 else None
        return found, "" if found else NO_DAMAGE


def views(found: Collection) -> list[View]:
    """Every setting, the one with the most models first."""
    made = []
    left = list(found.unfinished)
    for setting in sorted(found.settings, key=lambda setting: (-len(found.of(setting)), setting.id)):
        mine = [run for run in left if run.name.startswith(f"{setting.model}-")]
        left = [run for run in left if run not in mine]
        rows, tasks = cells(found, setting), task_order(setting.tasks)
        grouped = groups(tasks, setting.groups)
        compared = compare(rows, tasks, grouped)
        to_dense = compare_to_dense(rows, tasks, grouped, compared)
        made.append(View(found, setting, rows, compared, to_dense, mine, setting.title))
    titles = [view.title for view in made]
    for number, view in enumerate(made):
        if titles.count(titles[number]) > 1:
            view.title = f"{view.title} (sample {titles[: number + 1].count(titles[number])})"
    return made
