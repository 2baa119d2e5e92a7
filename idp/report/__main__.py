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
        undrawn = None if options.formats else _plots_cannot_be_drawn()
        if undrawn:
            formats.remove("plots")
        places = options.runs or ["outputs/runs"]
        _report(places, options.output, formats, options.title, undrawn)


def _plots_cannot_be_drawn() -> str | None:
    """Why not, where matplotlib is not installed: a report without plots is better than none."""
    if importlib.util.find_spec("matplotlib") is not None:
        return None
    return f"no plots: {lacks('drawing them', 'matplotlib', 'plots')}"


def _report(places: list[str], output: str | None, formats: list[str], title: str, undrawn: str | None) -> None:
    from idp.records.collect import collect
    from idp.report.summary import sweep_table
    from idp.report.write import CannotWrite, write

    found, written, unwritten = collect(places), [], None
    try:
        written = write(found, Path(output or DEFAULT).expanduser(), formats, title)
    except CannotWrite as error:
        if output is not None:
            raise
        unwritten = str(error)  # a folder that nobody asked for is no reason to keep the table back
    print(sweep_table(found))
    print()
    for note in [*found.notes, *filter(None, [undrawn, unwritten])]:
        print(f"note: {note}")
    for run in found.unfinished:
        print(run.line)
    for file in written:
        shown = f"{file}  (open it in a browser)" if file.name == PAGE else file
        print(f"wrote: {shown}")


if __name__ == "__main__":
    main()
