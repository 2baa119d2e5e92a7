"""`python -m idp.report [FOLDER or RECORD ...]`: one table over many runs, whenever in a sweep it is asked for."""

from __future__ import annotations

import argparse

from idp.command import failures_in_one_line


def main() -> None:
    """The table on standard output; bad input in one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m idp.report", description=__doc__.split(": ", 1)[1])
    parser.add_argument("places", nargs="*", default=["outputs/runs"], help="records, or folders of them")
    options = parser.parse_args()
    with failures_in_one_line():
        from idp.report.collect import collect
        from idp.report.tables import sweep_table

        print(sweep_table(collect(options.places).records))


if __name__ == "__main__":
    main()
