"""Writes a report: Markdown, CSV, Parquet, LaTeX, plots and the page, each whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Collection as Names
from pathlib import Path
from typing import Any

from idp.errors import UserError
from idp.extras import needs
from idp.records.collect import Collection
from idp.report import figures
from idp.report.behaviours import behaviour_table
from idp.report.costs import cost_table
from idp.report.files import (
    CSV,
    FORMATS,
    LATEX,
    MARKDOWN,
    PAGE,
    PAPER,
    PLOTS,
    RECORDS,
    RESULTS_CSV,
    RESULTS_PARQUET,
)
from idp.report.formats import Table, comma_separated, latex, markdown
from idp.report.frontier import frontier_table
from idp.report.intervals import difference_table
from idp.report.nine_tasks import score_table
from idp.report.paper import Choice, paper_tables
from idp.report.provenance import records_csv
from idp.report.view import View, views


class CannotWrite(UserError):
    """The folder cannot be written in."""


def write(
    found: Collection,
    folder: Path,
    formats: Names[str] = FORMATS,
    title: str = "Repairs",
    paper: Choice | None = None,
) -> list[Path]:
    """Writes the report.

    Args:
        found: the records.
        folder: where; made if it is not there.
        formats: which of `FORMATS`.
        title: of the page and the Markdown.
        paper: rows, columns and names of the table for a paper; None: its usual ones.

    Returns:
        the files, the plots' folder as one.

    Raises:
        CannotWrite: the folder cannot be written in.
        UserError: plots cannot be drawn.
    """
    made = views(found)
    for_paper = paper_tables(made, paper or Choice()) if "latex" in formats else ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _write(found, made, folder, formats, (title, for_paper))
    except OSError as error:
        raise CannotWrite(
            f"output={folder}: {error.strerror or error}; choose another folder with output=..."
        ) from error


def _write(
    found: Collection, made: list[View], folder: Path, formats: Names[str], texts: tuple[str, str]
) -> list[Path]:
    title, for_paper = texts
    tables = [
        (view, [score_table(view), cost_table(view), behaviour_table(view), frontier_table(view)]) for view in made
    ]
    written: list[Path] = []
    plots: dict[str, tuple[dict[str, Path], dict[str, str]]] = {}
    if "plots" in formats:
        from idp.report.plots import draw_all

        with needs("idp.report with formats=plots", "matplotlib", "plots"):
            import matplotlib  # noqa: F401
        for number, view in enumerate(made):
            place = folder / PLOTS / str(number + 1) if len(made) > 1 else folder / PLOTS
            plots[view.setting.id] = draw_all(view, place)
        written.append(folder / PLOTS)
    lines = figures.figures(made) if {"csv", "parquet"} & set(formats) else []
    if "csv" in formats:
        for number, (view, (scores, costs, *_)) in enumerate(tables):
            name = f"table-{number + 1}.csv" if len(tables) > 1 else CSV
            written.append(_put(folder / name, comma_separated([scores, costs, difference_table(view)])))
        written.append(_put(folder / RESULTS_CSV, figures.comma_separated(lines)))
        written.append(_put(folder / RECORDS, records_csv(found, folder)))
    if "parquet" in formats:
        written.append(_put_parquet(folder / RESULTS_PARQUET, lines))
    if "latex" in formats:
        text = "\n".join(f"% {view.title}\n" + "\n".join(map(latex, shown(parts))) for view, parts in tables)
        written += [_put(folder / LATEX, text), _put(folder / PAPER, for_paper)]
    if "markdown" in formats:
        written.append(_put(folder / MARKDOWN, document(found, tables, plots, folder, title)))
    if "page" in formats:
        from idp.report.page import page

        written.append(_put(folder / PAGE, page(found, made, title)))
    return written


def document(
    found: Collection,
    tables: list[tuple[View, list[Table]]],
    plots: dict[str, tuple[dict[str, Path], dict[str, str]]],
    folder: Path,
    title: str,
) -> str:
    """The report as Markdown: what was read, what was left out, and of each setting tables and plots."""
    runs = len(found.records)
    lines = [f"# {title}", "", f"{runs} run{'s' if runs != 1 else ''}, {len(found.models)} models measured.", ""]
    if found.notices:
        lines += ["## Left out and unfinished", "", *(f"- {note}" for note in found.notices), ""]
    for view, parts in tables:
        lines += [f"## {view.title}", ""]
        for table in shown(parts):
            lines += [f"### {table.title}", "", markdown(table), ""]
        drawn, left_out = plots.get(view.setting.id, ({}, {}))
        if drawn or left_out:
            lines += ["### Plots", ""]
        for name, file in drawn.items():
            lines += [f"![{name}]({file.relative_to(folder).as_posix()})", ""]
        lines += [f"- {name}: not drawn, for want of {reason}" for name, reason in left_out.items()]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def shown(tables: list[Table]) -> list[Table]:
    """Those that have rows."""
    return [table for table in tables if table.rows]


def _put_parquet(path: Path, lines: list[dict[str, Any]]) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    figures.write_parquet(lines, temporary)
    os.replace(temporary, path)
    return path


def _put(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path
