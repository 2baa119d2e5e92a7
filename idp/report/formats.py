"""A table once, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, field

from tabulate import tabulate

LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}


@dataclass(frozen=True)
class Entry:
    """What stands in one place of a table: its text, and the number behind it."""

    text: str
    value: float | None = None
    bold: bool = False
    stderr: float | None = None
    spread: float | None = None  # standard deviation over seeds


@dataclass(frozen=True)
class Column:
    """`of`: what the column is one of, such as tasks."""

    key: str
    title: str
    of: str = ""


@dataclass
class Table:
    """Rows by column key; what a row lacks is missing."""

    title: str
    columns: list[Column]
    rows: list[dict[str, Entry]]
    notes: list[str] = field(default_factory=list)


MISSING = Entry("-")


def markdown(table: Table) -> str:
    """As a GitHub table, its notes below."""
    lines = [[_markdown_entry(row.get(column.key, MISSING)) for column in table.columns] for row in table.rows]
    headers = [column.title.replace("|", "\\|") for column in table.columns]
    drawn = tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)
    return "\n".join([drawn, "", *(f"- {note}" for note in table.notes)])


def comma_separated(tables: list[Table]) -> str:
    """One line per row of tables that have the same rows; figures in full, standard errors in columns of their own."""
    columns = list({column.key: column for table in tables for column in table.columns}.values())
    written = io.StringIO()
    together = zip(*(table.rows for table in tables), strict=True)
    rows = [{key: entry for part in parts for key, entry in part.items()} for parts in together]
    extra = {
        column.key: [part for part in ("stderr", "spread") if any(_part(row, column, part) is not None for row in rows)]
        for column in columns
    }
    writer = csv.writer(written, lineterminator="\n")
    header = []
    for column in columns:
        header += [column.title, *(f"{column.title} {part}" for part in extra[column.key])]
    writer.writerow(header)
    for row in rows:
        line: list[object] = []
        for column in columns:
            entry = row.get(column.key, MISSING)
            shown = "" if entry is MISSING else entry.text if entry.value is None else repr(entry.value)
            line += [_no_formula(shown), *(_or_nothing(_part(row, column, part)) for part in extra[column.key])]
        writer.writerow(line)
    return written.getvalue()


def latex(table: Table) -> str:
    """As a booktabs table, its notes as comments."""
    lines = [[_latex_entry(row.get(column.key, MISSING)) for column in table.columns] for row in table.rows]
    headers = [escape_latex(column.title) for column in table.columns]
    drawn = tabulate(lines, headers=headers, tablefmt="latex_raw", disable_numparse=True)
    drawn = drawn.replace("\\hline", "\\toprule", 1).replace("\\hline", "\\midrule", 1)
    drawn = drawn.replace("\\hline", "\\bottomrule", 1)
    return "\n".join([f"% {table.title}; needs booktabs", drawn, *(f"% {note}" for note in table.notes), ""])


def escape_latex(text: str) -> str:
    """Text with what LaTeX reads as commands put in its own spelling."""
    return re.sub(r"[\\&%$#_{}~^±]", lambda found: LATEX[found[0]], text)


def _markdown_entry(entry: Entry) -> str:
    text = re.sub(r"([|*`<\[\]])", r"\\\1", entry.text) if entry.value is None else entry.text
    text = " ".join(text.split())
    return f"**{text}**" if entry.bold else text


def _latex_entry(entry: Entry) -> str:
    text = escape_latex(entry.text)
    return f"\\textbf{{{text}}}" if entry.bold else text


def _part(row: dict[str, Entry], column: Column, part: str) -> float | None:
    return getattr(row.get(column.key, MISSING), part)


def _or_nothing(value: float | None) -> str:
    return "" if value is None else repr(value)


def _no_formula(text: str) -> str:
    """Spreadsheets run text that starts like a formula; a number may well start with a sign."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") and not re.fullmatch(r"[-+]?[\d.eE+-]+", text) else text
