"""The rows of a study and what they stand on: which is compared with which, on which documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from idp.records import cells
from idp.records.cell import Cell
from idp.records.collect import Collection
from idp.records.measured import COMPRESSED, DENSE, REPAIRED, Score, Setting
from idp.records.outcomes import Outcomes, graded, outcomes, paired

Reading = Callable[[Score | None], Outcomes | None]  # of a score its `outcomes`, or the `graded` ones
Scores = dict[str, list[np.ndarray]]  # of each task, [runs, documents] of each cell


def cells_of(collection: Collection, setting: Setting) -> list[Cell]:
    """The cells of one setting, in the collection's order; upper bounds, which use the labels, are left out."""
    return [cell for cell in cells.cells(collection, setting) if not cell.first.uses_labels]


def title(collection: Collection, setting: Setting) -> str:
    """What a setting is called, also where a model was measured on several samples of documents."""
    alike = [each for each in collection.settings if each.title == setting.title]
    number = f" (sample {alike.index(setting) + 1})" if len(alike) > 1 else ""
    return setting.title + number


def weights_of(cell: Cell) -> tuple[str, ...]:
    """The weights that a cell's models have, or that their repair is on: of the dense model, and as compressed.

    Models that were calibrated with several seeds alone are one cell, and have the same weights here.
    """
    load = cell.first.keys["load"]
    return (load,) if cell.first.compressor == "none" else (load, cell.weights)


def dense_of(every: Sequence[Cell], cell: Cell) -> Cell | None:
    """The dense model of a cell's own."""
    return next(
        (each for each in every if each.first.role == DENSE and weights_of(each)[:1] == weights_of(cell)[:1]), None
    )


def unrepaired_of(every: Sequence[Cell], cell: Cell) -> Cell | None:
    """The model that a cell repairs: compressed, or dense where nothing was compressed."""
    if cell.first.compressor == "none":
        return dense_of(every, cell)
    return next(
        (each for each in every if each.first.role == COMPRESSED and weights_of(each) == weights_of(cell)), None
    )


def repairs(every: Sequence[Cell], *methods: str) -> list[Cell]:
    """The repaired cells, of the given methods (`config.Recovery.method`) if any are given."""
    return [cell for cell in every if cell.first.role == REPAIRED and (not methods or cell.first.method in methods)]


def of_the_input(every: Sequence[Cell]) -> list[Cell]:
    """The repairs that change no weight and were learned where they are used: prompts before the input alone."""
    return [cell for cell in repairs(every) if not cell.first.adapter and cell.first.transfer is None]


def one_run(cell: Cell) -> Cell:
    """A cell's first run alone: of models that nothing trained one is as good as several."""
    return replace(cell, members=cell.members[:1])


def together(
    chosen: Sequence[Cell], of: Callable[[Score | None], Outcomes | None] = outcomes
) -> tuple[Scores, list[str]]:
    """What every run of several cells scored on the same documents, the greater the better.

    Args:
        chosen: the cells.
        of: what is read of a score: its `outcomes`, or the `graded` ones.

    Returns:
        of each task one [runs, documents] per cell; and the tasks that not all of them measured on the same documents,
        of which therefore nothing is compared.
    """
    runs = [run for cell in chosen for run in cell.members]
    scores: Scores = {}
    left_out = []
    for task in dict.fromkeys(task for run in runs for task in run.tasks):
        found = paired(runs, task, of)
        if found is None:
            left_out.append(task)
            continue
        sign = 1.0 if of is graded or runs[0].tasks[task].higher_is_better else -1.0
        rows = iter(found)
        scores[task] = [np.array([sign * next(rows) for _ in cell.members], dtype=float) for cell in chosen]
    return scores, left_out


def pair(
    before: Cell, after: Cell, of: Reading = outcomes
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]:
    """As `together` for two, in the form that the tests take."""
    scores, left_out = together([before, after], of)
    return {task: (first, second) for task, (first, second) in scores.items()}, left_out


def documents(scores: Scores) -> int:
    """Documents of all tasks together."""
    return sum(tables[0].shape[1] for tables in scores.values())
