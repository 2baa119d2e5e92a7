"""A table once, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tabulate import tabulate

from idp.records.latex import escape


@dataclass(frozen=True)
class Entry:
    """What stands in one place of a table: its text, the number behind it, and what CSV says of that number beside."""

    text: str
    value: float | None = None
    bold: bool = False
    stderr: float | None = None
    spread: float | None = None  # standard deviation over seeds
    low: float | None = None  # the 95 % interval
    high: float | None = None
    more: Mapping[str, float | str | None] = field(default_factory=dict)  # further columns, by the end of their titles

    @property
    def parts(self) -> dict[str, float | str | None]:
        """What stands beside the value in CSV."""
        return {"stderr": self.stderr, "low": self.low, "high": self.high, "deviation": self.spread, **self.more}


@dataclass(frozen=True)
class Column:
    """A column, and what it is called.

    `of` is what it is one of, such as tasks; a `wide` one is shown where there is room, not in Markdown or LaTeX;
    `in_csv` is its title there, where the numbers stand in full and in the scores' own unit.
    """

    key: str
    title: str
    of: str = ""
    wide: bool = False
    in_csv: str = ""


@dataclass
class Table:
    """Rows by column key; what a row lacks is missing."""

    title: str
    columns: list[Column]
    rows: list[dict[str, Entry]]
    notes: list[str] = field(default_factory=list)

    @property
    def narrow(self) -> list[Column]:
        """The columns that a page of paper has room for."""
        return [column for column in self.columns if not column.wide]


MISSING = Entry("-")


def percent(share: float) -> str:
    """A share in whole percent."""
    return f"{round(share, 2) + 0.0:.0%}"


def markdown(table: Table) -> str:
    """As a GitHub table, its notes below."""
    lines = [[_markdown_entry(row.get(column.key, MISSING)) for column in table.narrow] for row in table.rows]
    headers = [column.title.replace("|", "\\|") for column in table.narrow]
    drawn = tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)
    return "\n".join([drawn, "", *(f"- {note}" for note in table.notes)])


def comma_separated(tables: list[Table]) -> str:
    """One line per row of tables that have the same rows; figures in full, all their parts in columns of their own."""
    columns = list({column.key: column for table in tables for column in table.columns}.values())
    written = io.StringIO()
    together = zip(*(table.rows for table in tables), strict=True)
    rows = [{key: entry for part in parts for key, entry in part.items()} for parts in together]
    parts_of: dict[str, list[str]] = {}
    for column in columns:
        parts = [row[column.key].parts for row in rows if column.key in row]
        known = dict.fromkeys(part for each in parts for part in each)
        parts_of[column.key] = [part for part in known if any(each.get(part) is not None for each in parts)]
    writer = csv.writer(written, lineterminator="\n")
    header = []
    for column in columns:
        title = column.in_csv or column.title
        header += [title, *(f"{title} {part}" for part in parts_of[column.key])]
    writer.writerow(header)
    for row in rows:
        line: list[object] = []
        for column in columns:
            entry = row.get(column.key, MISSING)
            shown = "" if entry is MISSING else entry.text if entry.value is None else repr(entry.value)
            line += [_no_formula(shown), *(_in_full(entry.parts.get(part)) for part in parts_of[column.key])]
        writer.writerow(line)
    return written.getvalue()


def latex(table: Table) -> str:
    """As a booktabs table, its notes as comments."""
    lines = [[_latex_entry(row.get(column.key, MISSING)) for column in table.narrow] for row in table.rows]
    headers = [escape(column.title) for column in table.narrow]
    drawn = tabulate(lines, headers=headers, tablefmt="latex_raw", disable_numparse=True)
    drawn = drawn.replace("\\hline", "\\toprule", 1).replace("\\hline", "\\midrule", 1)
    drawn = drawn.replace("\\hline", "\\bottomrule", 1)
    return "\n".join([f"% {table.title}; needs booktabs", drawn, *(f"% {note}" for note in table.notes), ""])


def _markdown_entry(entry: Entry) -> str:
    text = re.sub(r"([|*`<\[\]])", r"\\\1", entry.text) if entry.value is None else entry.text
    text = " ".join(text.split())
    return f"**{text}**" if entry.bold else text


def _latex_entry(entry: Entry) -> str:
    text = escape(entry.text)
    return f"\\textbf{{{text}}}" if entry.bold else text


def _in_full(value: float | str | None) -> str:
    return "" if value is None else _no_formula(value) if isinstance(value, str) else repr(value)


def _no_formula(text: str) -> str:
    """Spreadsheets run text that starts like a formula; a number may well start with a sign."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") and not re.fullmatch(r"[-+]?[\d.eE+-]+", text) else text
