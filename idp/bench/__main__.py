"""`idp bench [benchmark] ...`: one of the benchmarks; without a name the scorer's speed and what prompts cost."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from idp.bench import BENCHMARKS
from idp.command import failures_in_one_line, nearest, wants_help
from idp.errors import UserError

FIRST = "speed"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    given = list(sys.argv[1:] if argv is None else argv)
    name, rest = (given[0], given[1:]) if given and not given[0].startswith("-") else (FIRST, given)
    if name == FIRST and rest == given and wants_help(given):
        print("usage: idp bench [benchmark] ...\n")
        print("\n".join(f"  {each:<10} {help}" for each, help in BENCHMARKS.items()))
        print("\nidp bench <benchmark> --help has a benchmark's options.")
        return
    with failures_in_one_line(command="bench"):
        if name not in BENCHMARKS:
            raise UserError(f"{name}: no such benchmark{nearest(name, BENCHMARKS)} (there are {', '.join(BENCHMARKS)})")
        try:
            module = importlib.import_module(f"idp.bench.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"idp.bench.{name}":
                raise
            raise UserError(str(error)) from error
    sys.argv = [str(module.__file__), *rest]
    module.main()


if __name__ == "__main__":
    main()
