"""Rows of the tables: models that differ by seeds alone are one row, named by what sets it apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from idp.records.cell import Cell
from idp.records.collect import Collection
from idp.records.measured import COMPRESSED, DENSE, REPAIRED, Setting
from idp.records.naming import name as give_names
from idp.records.naming import natural
from idp.records.scores import GROUPS, NINE
from idp.records.seeds import identities, seeds_of, weights_of


def cells(found: Collection, setting: Setting) -> list[Cell]:
    """The rows of one setting: dense, then each compressed model and its repairs."""
    models = found.of(setting)
    weights, rows_of = weights_of(models), identities(models)
    grouped: dict[str, Cell] = {}
    for model in models:
        identity = rows_of[model.id]
        grouped.setdefault(identity, Cell(identity, [], weights=weights[model.id])).members.append(model)
    rows = list(grouped.values())
    plain = {(row.first.role, row.weights): row.id for row in rows if row.first.role != REPAIRED}
    dense = next((row.id for row in rows if row.first.role == DENSE), None)
    for row in rows:
        row.members.sort(key=lambda model: [(value is not None, value or 0) for value in seeds_of(model).values()])
        if row.first.role == COMPRESSED or row.first.compressor == "none":
            row.parent = dense if row.first.role != DENSE else None
        else:
            row.parent = plain.get((COMPRESSED, row.weights))
    give_names(rows)

    return sorted(rows, key=lambda row: (row.first.compressor != "none", natural(row.compressor)))


def task_order(tasks: list[str]) -> list[str]:
    """The nine tasks in the paper's order, then others by name."""
    return [task for task in NINE if task in tasks] + sorted(set(tasks) - set(NINE))


def groups(tasks: list[str], named: Mapping[str, Sequence[str]] | None = None) -> dict[str, list[str]]:
    """The paper's groups, and those that runs name, of which all tasks are there."""
    return {
        name.replace("_", " "): list(members)
        for name, members in {**GROUPS, **(named or {})}.items()
        if name != "all" and members and set(members) <= set(tasks)
    }
