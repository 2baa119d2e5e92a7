"""`idp report [FOLDER or RECORD ...]`: tables, plots and a page over many runs, whenever in a sweep."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from idp.command import failures_in_one_line, help_text, parse, wants_help, word
from idp.errors import UserError
from idp.extras import lacks
from idp.records.latex import BOUNDS
from idp.report.files import FORMATS, PAGE

OPENING = """usage: idp report [FOLDER or RECORD ...] [key=value ...]

One table, plots and an HTML page over any set of runs, finished or not.
"""
DEFAULT = "outputs/report"


@dataclass
class ReportOptions:
    """The words of the command line."""

    runs: list[str] = word("folders of runs, or records (default: outputs/runs)", positional=True, default_factory=list)
    output: str | None = word("the folder that the report is written to (default: outputs/report)", default=None)
    formats: list[str] = word(f"which of {','.join(FORMATS)} (default: all)", default_factory=list)
    title: str = word("of the page (default: Repairs of compressed models)", default="Repairs of compressed models")
    columns: list[str] = word(
        "of paper.tex, such as mean,difference,damage,params or a task; mean:pm adds its bounds", default_factory=list
    )
    rows: list[str] = word("of paper.tex, by name: dense,gptq3,*lora* (default: all)", default_factory=list)
    names: str | None = word("in paper.tex: a YAML file, or '{gptq3: GPTQ, damage: Share}'", default=None)
    caption: str | None = word("of paper.tex (default: what its columns are)", default=None)
    label: str = word("of paper.tex (default: tab:repairs)", default="tab:repairs")
    bounds: str | None = word(f"in paper.tex: {', '.join(BOUNDS)} (default: intervals of differences)", default=None)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: a table on standard output, files in the folder; bad input is one line on standard error."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if wants_help(argv):
        print(help_text(ReportOptions, OPENING))
        return
    with failures_in_one_line(command="report"):
        options = parse(ReportOptions, argv)
        formats = options.formats or list(FORMATS)
        if unknown := set(formats) - set(FORMATS):
            given = ",".join(formats)
            raise UserError(f"formats={given}: {min(unknown)} is none of {', '.join(FORMATS)}")
        unchanged = ReportOptions()
        for name in ("columns", "rows", "names", "caption", "label", "bounds"):
            if "latex" not in formats and getattr(options, name) != getattr(unchanged, name):
                raise UserError(f"{name}=: of paper.tex, which is not written; add latex to formats=")
        undrawn = None if options.formats else _plots_cannot_be_drawn()
        if undrawn:
            formats.remove("plots")
        places = options.runs or ["outputs/runs"]
        _report(places, options, formats, undrawn)


def _plots_cannot_be_drawn() -> str | None:
    """Why not, where matplotlib is not installed: a report without plots is better than none."""
    if importlib.util.find_spec("matplotlib") is not None:
        return None
    return f"no plots: {lacks('drawing them', 'matplotlib', 'plots')}"


def _report(places: list[str], options: ReportOptions, formats: list[str], undrawn: str | None) -> None:
    from idp.records.collect import collect
    from idp.report.paper import choice, unused_names
    from idp.report.summary import sweep_table
    from idp.report.view import views
    from idp.report.write import CannotWrite, write

    paper = choice(options.columns, options.rows, options.names, options.caption, options.label, options.bounds)
    found, written, unwritten = collect(places), [], None
    try:
        written = write(found, Path(options.output or DEFAULT).expanduser(), formats, options.title, paper)
    except CannotWrite as error:
        if options.output is not None:
            raise
        unwritten = str(error)  # a folder that nobody asked for is no reason to keep the table back
    print(sweep_table(found))
    print()
    unused = unused_names(views(found), paper)
    if unused:
        unused = [f"names: no row, part of a row's name, or column is called {', '.join(unused)}"]
    for note in [*found.notes, *filter(None, [undrawn, unwritten]), *unused]:
        print(f"note: {note}")
    for run in found.unfinished:
        print(run.line)
    for file in written:
        shown = f"{file}  (open it in a browser)" if file.name == PAGE else file
        print(f"wrote: {shown}")


if __name__ == "__main__":
    main()
