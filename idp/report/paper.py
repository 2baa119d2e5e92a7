"""A table for a paper: chosen rows and columns of the report's tables, under the names that the paper has for them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from idp.command import nearest
from idp.errors import UserError
from idp.records.cell import Cell as Row
from idp.records.differences import SHARE
from idp.records.latex import BOUNDS, INTERVAL, LABEL, NONE, Cell, Column, document_table
from idp.report.costs import cost_table
from idp.report.formats import Entry
from idp.report.nine_tasks import score_table
from idp.report.view import View

DEFAULT = ("mean", "difference", "damage", "perplexity", "params")
ALIASES = {"damage": "brought back", "params": "added", "dense": "to dense", "size": "packed"}
NAMES = ("name", "model", "compressor", "recovery", "seeds")
SEVERAL = ("perplexity", "kl", "tasks", "groups")  # words for all columns of a kind
DIFFERENCES = ("difference", "to dense", "brought back")  # whose intervals are shown unless said otherwise
ABOUT = {
    "difference": "Difference: of a repair to the compressed model, of a compressed model to the dense one",
    "to dense": "To dense: the difference to the dense model",
    "brought back": "Damage brought back: (repaired - compressed) / (dense - compressed) of the means, a dash where"
    " there is no damage beyond noise",
    "added": "Parameters: those that a repair adds",
}


@dataclass(frozen=True)
class Choice:
    """What a paper's table shows.

    Args:
        columns: `mean`, `difference`, a task, ..., each perhaps with how its bounds are shown, as in `mean:pm`.
        rows: names of rows, `*` for any part; empty: all.
        names: what rows, parts of their names, and columns are called instead.
        caption: in place of the one that says what the columns are.
        label: for references.
        bounds: of all columns that have them; None: intervals of differences alone.
    """

    columns: Sequence[str] = DEFAULT
    rows: Sequence[str] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    caption: str | None = None
    label: str = "tab:repairs"
    bounds: str | None = None


def choice(
    columns: Sequence[str], rows: Sequence[str], names: str | None, caption: str | None, label: str, bounds: str | None
) -> Choice:
    """The choice that the words of a command line make.

    Raises:
        UserError: names that are no mapping, a label that LaTeX may misread, bounds of no known kind.
    """
    if not LABEL.fullmatch(label):
        raise UserError(f"label={label}: use letters, digits and . : _ -")
    if bounds is not None and bounds not in BOUNDS:
        raise UserError(f"bounds={bounds}: use one of {', '.join(BOUNDS)}")
    return Choice(tuple(columns) or DEFAULT, tuple(rows), _mapping(names) if names else {}, caption, label, bounds)


def paper_tables(made: Sequence[View], chosen: Choice) -> str:
    """A LaTeX table of each setting that has such rows.

    Raises:
        UserError: a column that no table has, or rows that match none.
    """
    kept = {view: [row for row in view.rows if _matches(row, chosen.rows)] for view in made}
    _check_rows(made, chosen.rows)
    for word in chosen.columns:
        if not any(_columns(view, word, chosen) is not None for view in made):
            names = list(dict.fromkeys([*NAMES, *SEVERAL, *ALIASES, *(key for view in made for key in _known(view))]))
            hint = nearest(word, names)
            raise UserError(f"columns={word}: there is no such column{hint} (there are {', '.join(names)})")
    tables = []
    views = [view for view in made if kept[view]]
    for number, view in enumerate(views, 1):
        label = f"{chosen.label}-{number}" if len(views) > 1 else chosen.label
        tables.append(_table(view, kept[view], replace(chosen, label=label)))
    return "\n".join(tables)


def unused_names(made: Sequence[View], chosen: Choice) -> list[str]:
    """The names that no row, part of a row's name, or column has: misspelt, or of another study."""
    known = {*NAMES, *ALIASES}
    for view in made:
        known |= {
            part for row in view.rows for part in (row.name, *row.name.split(" + "), row.compressor, row.recovery)
        }
        known |= {name for column in _known(view).values() for name in (column.key, column.title)}
    return [name for name in chosen.names if name not in known]


def _table(view: View, rows: Sequence[Row], chosen: Choice) -> str:
    columns = [column for word in chosen.columns for column in _columns(view, word, chosen) or ()]
    if not any(column.key in NAMES for column in columns):
        columns.insert(0, Column("name", "Model"))
    columns = [replace(column, title=_called(column, chosen.names)) for column in columns]
    together = zip(score_table(view).rows, cost_table(view).rows, strict=True)
    kept, lines = {row.id for row in rows}, []
    for row, (scores, costs) in zip(view.rows, together, strict=False):  # those of unfinished runs come last
        if row.id in kept:
            entries = {**scores, **costs}
            lines.append({column.key: _cell(row, column, entries, chosen.names) for column in columns})
    caption = _caption(view, columns, rows) if chosen.caption is None else chosen.caption
    return document_table(columns, lines, caption=caption, label=chosen.label, notes=[view.title])


def _columns(view: View, word: str, chosen: Choice) -> list[Column] | None:
    """The columns that a word names: one, or all perplexities, tasks and the like; None: this setting has no such."""
    name, _, bounds = word.rpartition(":") if word.rpartition(":")[2] in BOUNDS else (word, "", None)
    name = ALIASES.get(name, name)
    several = {
        "perplexity": [f"{corpus} perplexity" for corpus in view.setting.corpora],
        "kl": [column.key for column in cost_table(view).columns if column.key.endswith(" KL") and not column.wide],
        "tasks": view.tasks,
        "groups": [f"mean {group}" for group in view.groups],
    }
    known = _known(view)
    keys = several.get(name, [name if name in known else f"mean {name}"])
    if name not in several and keys[0] not in known:
        return None
    found = []
    for key in keys:
        usual = INTERVAL if key in DIFFERENCES else NONE
        found.append(replace(known[key], bounds=bounds or chosen.bounds or usual))
    return found


def _known(view: View) -> dict[str, Column]:
    """Every column that a paper may have of a view, by the key of the report's own tables."""
    percent = view.unit == SHARE
    scale, digits, unit = (100, 1, " (%)") if percent else (1, 3, "")
    points = " (points)" if percent else ""
    found = {name: Column(name, {"name": "Model"}.get(name, name.capitalize())) for name in NAMES}
    for key, title in view.headings.items():
        shown = title if key in view.tasks else re.sub("^mean( of [0-9]+)?", "Mean", title)
        found[key] = Column(key, f"{shown}{unit}", digits, scale)
    found |= {
        "difference": Column("difference", f"Difference{points}", digits, scale, signed=True),
        "detectable": Column("detectable", f"Detectable{points}", digits, scale),
        "to dense": Column("to dense", f"To dense{points}", digits, scale, signed=True),
        "brought back": Column("brought back", "Damage brought back (%)", 0, 100),
        "runs": Column("runs", "Runs", 0),
        "added": Column("added", "Added parameters", 0),
        "sparsity": Column("sparsity", "Sparsity (%)", 1, 100),
        "bits": Column("bits", "Bits", 2),
        "packed": Column("packed", "Size (MB)", 1),
        "effective": Column("effective", "Effective size (MB)", 1),
        "device": Column("device", "GPU (GiB)", 1),
        "host": Column("host", "Host (GiB)", 1),
        "prefill": Column("prefill", "Prefill (ratio)", 2),
        "decode": Column("decode", "Decode (ratio)", 2),
    }
    alone = len(view.setting.corpora) == 1
    for column in cost_table(view).columns:
        corpus, _, figure = column.key.rpartition(" ")
        if figure == "perplexity":
            found[column.key] = Column(column.key, "Perplexity" if alone else f"{corpus} perplexity", 2)
        elif figure == "KL":
            found[column.key] = Column(column.key, "KL" if alone and not column.wide else f"{corpus} KL", 3)
    return found


def _cell(row: Row, column: Column, entries: Mapping[str, Entry], names: Mapping[str, str]) -> Cell:
    if column.key == "name":
        return Cell(_name(row, names))
    entry = entries.get(column.key)
    if column.decimals is None:
        text = entry.text if entry is not None else ""
        return Cell(names.get(text, text))
    if entry is None or entry.value is None:
        return Cell()
    return Cell(value=entry.value, low=entry.low, high=entry.high, bold=entry.bold)


def _name(row: Row, names: Mapping[str, str]) -> str:
    """A row's name, whole or part by part, as the paper has it."""
    if row.name in names:
        return names[row.name]
    return " + ".join(names.get(part, part) for part in row.name.split(" + "))


def _called(column: Column, names: Mapping[str, str]) -> str:
    shorter = [alias for alias, key in ALIASES.items() if key == column.key]
    for name in (column.key, *shorter, column.title):
        if name in names:
            return names[name]
    return column.title


def _matches(row: Row, patterns: Sequence[str]) -> bool:
    name = row.name.lower()
    return not patterns or any(name == each.lower() or fnmatch.fnmatchcase(name, each.lower()) for each in patterns)


def _check_rows(made: Iterable[View], patterns: Sequence[str]) -> None:
    rows = [row for view in made for row in view.rows]
    for pattern in patterns:
        if not any(_matches(row, [pattern]) for row in rows):
            names = list(dict.fromkeys(row.name for row in rows))
            raise UserError(f"rows={pattern}: no such row{nearest(pattern, names)} (there are {', '.join(names)})")


def _caption(view: View, columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """What the columns are, as far as a reader of the paper has to be told."""
    keys = [column.key for column in columns]
    parts = [view.title, *(text for key, text in ABOUT.items() if key in keys)]
    shown = {column.bounds for column in columns if column.decimals is not None}
    if INTERVAL in shown:
        parts.append("In brackets: the 95 % interval")
    if "pm" in shown:
        parts.append("±: half the width of the 95 % interval")
    parts.append("Bold: beyond chance (p < 0.05 after Holm's correction)")
    if any(key in DIFFERENCES for key in keys) and any(row.of_one_seed for row in rows):
        parts.append("Intervals of single runs hold for their seed only")
    return ". ".join(parts) + "."


def _mapping(given: str) -> dict[str, str]:
    """The names in a YAML or JSON file, or in `{old: new, ...}` itself."""
    import yaml

    try:
        text = given if given.lstrip().startswith("{") else Path(given).expanduser().read_text(encoding="utf-8")
        found: Any = yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"names={given}: {error.strerror}; give a YAML file, or '{{old: new, ...}}'") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"names={given}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict) or not all(isinstance(value, (str, int, float)) for value in found.values()):
        raise UserError(f"names={given}: give a mapping, such as '{{gptq3: GPTQ (3 bits)}}'")
    return {str(key): str(value) for key, value in found.items()}
