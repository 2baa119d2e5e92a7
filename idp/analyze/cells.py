"""Measured models as cells of a study: the runs that differ in nothing but their training seed are one cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from idp.report.collect import Collection
from idp.report.measured import COMPRESSED, DENSE, REPAIRED, Measured, Setting
from idp.report.outcomes import paired
from idp.store import digest

Scores = dict[str, list[np.ndarray]]  # of each task, [runs, documents] of each cell


@dataclass(frozen=True)
class Cell:
    """One way to make a model. `name` says how it was compressed and repaired, `repair` the second alone."""

    name: str
    repair: str
    runs: tuple[Measured, ...]

    @property
    def first(self) -> Measured:
        """One of the runs: what they have in common may be read from it."""
        return self.runs[0]

    @property
    def role(self) -> str:
        return self.first.role

    @property
    def base(self) -> tuple[str, ...]:
        """Keys of the weights that the model has, or that its repair is on."""
        return tuple(self.first.keys[stage] for stage in ("load", "compress") if stage in self.first.keys)


def cells_of(collection: Collection, setting: Setting) -> list[Cell]:
    """The cells of one setting, in the collection's order; upper bounds that peek at the answers are left out."""
    groups: dict[str, list[Measured]] = {}
    for model in collection.of(setting):
        if not model.peeks:
            groups.setdefault(_identity(model), []).append(model)
    runs = [tuple(sorted(group, key=lambda model: model.seed)) for group in groups.values()]
    bases: dict[str, set[str]] = {}
    for group in runs:
        bases.setdefault(group[0].compressor, set()).add(group[0].keys.get("compress", ""))
    names = []
    for group in runs:
        compressor = group[0].compressor
        if len(bases[compressor] - {""}) > 1 and group[0].config["compressor"]:
            compressor += f" ({_calibration(group[0].config)})"
        names.append((compressor, _repair(group[0])))
    many = Counter(names)
    found = []
    for (compressor, repair), group in zip(names, runs, strict=True):
        if many[compressor, repair] > 1:  # they differ in something that the name does not say
            repair = f"{repair} [{_identity(group[0])[:4]}]"
        parts = [part for part in (compressor, repair) if part != "none"]
        found.append(Cell(DENSE if group[0].role == DENSE else " + ".join(parts), repair, group))
    return found


def dense_of(cells: Sequence[Cell], cell: Cell) -> Cell | None:
    """The dense model of a cell's own."""
    return next((each for each in cells if each.role == DENSE and each.base[:1] == cell.base[:1]), None)


def unrepaired_of(cells: Sequence[Cell], cell: Cell) -> Cell | None:
    """The model that a cell repairs: compressed, or dense where nothing was compressed."""
    for role in (COMPRESSED, DENSE):
        for each in cells:
            if each.role == role and (each.base == cell.base or (role == DENSE and cell.first.compressor == "none")):
                return each
    return None


def repairs(cells: Sequence[Cell], *kinds: str) -> list[Cell]:
    """The repaired cells, of the given kinds of recovery if any are given."""
    return [cell for cell in cells if cell.role == REPAIRED and (not kinds or cell.first.recovery in kinds)]


def together(cells: Sequence[Cell]) -> tuple[Scores, list[str]]:
    """What every run of several cells scored on the same documents, the greater the better.

    Returns:
        of each task one [runs, documents] per cell; and the tasks that not all of them measured on the same documents,
        of which therefore nothing is compared.
    """
    runs = [run for cell in cells for run in cell.runs]
    scores: Scores = {}
    left_out = []
    for task in dict.fromkeys(task for run in runs for task in run.tasks):
        found = paired(runs, task)
        if found is None:
            left_out.append(task)
            continue
        sign = 1.0 if runs[0].tasks[task].higher_is_better else -1.0
        rows = iter(found)
        scores[task] = [np.array([sign * next(rows) for _ in cell.runs], dtype=float) for cell in cells]
    return scores, left_out


def pair(before: Cell, after: Cell) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]:
    """As `together` for two, in the form that the tests take."""
    scores, left_out = together([before, after])
    return {task: (first, second) for task, (first, second) in scores.items()}, left_out


def documents(scores: Scores) -> int:
    """Documents of all tasks together."""
    return sum(tables[0].shape[1] for tables in scores.values())


def _identity(model: Measured) -> str:
    """Of all that made a model but the seed."""
    recovery: Any = model.config["recovery"]
    if model.transfer is not None:  # not the one run that it is from, whose seed the folder's name would tell
        origin = {key: value for key, value in model.transfer.items() if key not in ("from", "key", "seed")}
        recovery = {"transfer": origin, "selector": recovery.get("selector")}
    base = [model.keys.get("load"), model.keys.get("compress")]
    corpus = model.config["corpus"] if model.role == REPAIRED else None
    return digest([model.setting, model.role, base, recovery, corpus])


def _repair(model: Measured) -> str:
    """A repair in a few words: its kind and its size."""
    recovery = model.config["recovery"] or {}
    if model.transfer is not None:
        return f"transfer of {model.transfer['kind']} from {model.transfer['compressor'] or 'elsewhere'}"
    words = [model.recovery]
    if "lengths" in recovery:
        words.append("+".join(map(str, recovery["lengths"])))
    elif "length" in recovery:
        words.append(str(recovery["length"]))
    if rank := recovery.get("rank") or recovery.get("lora", {}).get("rank"):
        words.append(f"r={rank}")
    if model.selector:
        calibrated = " calibrated" if recovery.get("selector", {}).get("calibrated") else ""
        words.append(f"({model.selector}{calibrated})")
    if (bank := recovery.get("bank", {}).get("kind", "independent")) != "independent":
        words.append(bank)
    return " ".join(words)


def _calibration(config: dict[str, Any]) -> str:
    calibration = config["compressor"]["calibration"]
    text = calibration["corpus"] or config["corpus"]["name"]
    return f"{calibration['samples']} x {calibration['length']} of {text}, seed {calibration['seed']}"
