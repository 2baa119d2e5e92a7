"""Shell completion of `idp`: its commands and their options; the words of a run are Hydra's to complete.

A shell calls `idp -sc query=<shell>` with the line that stands there in COMP_LINE.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass

from idp.commands import COMMANDS, Command


def answer(argv: Sequence[str]) -> None:
    """Answers `-sc install=<shell>` and `-sc query=<shell>`.

    Args:
        words: those of the command line.
    """
    asked = argv[-1].rpartition("query=")[2] if "query=" in argv[-1] else ""
    line = os.environ.get("COMP_LINE", "")
    if asked and (offered := offers(line)) is not None:
        print((" " if asked == "bash" else "\n").join(offered))
        return
    if asked:
        program, *rest = line.split(" ")
        os.environ["COMP_LINE"] = " ".join([program, *(rest[1:] if rest and rest[0] in COMMANDS else rest)])
    from idp.run import main

    sys.argv[1:] = argv
    main()


def offers(line: str) -> list[str] | None:
    """What may stand where a line ends; None: what Hydra knows.

    Args:
        line: the whole line, beginning with `idp`; a blank at its end begins a new word.
    """
    argv = line.split()[1:]
    started = argv.pop() if argv and not line.endswith(" ") else ""
    if not argv:
        if "=" in started:
            return None
        return [name for name in COMMANDS if name.startswith(started)]
    command = COMMANDS.get(argv[0])
    if command is None or command.hydra:
        return None
    return [each for each in _of(command, argv[1:], started.startswith("--")) if each.startswith(started)]


def _of(command: Command, argv: Sequence[str], dashed: bool) -> Iterator[str]:
    if command.name == "bench" and not argv:
        from idp.bench import BENCHMARKS

        yield from BENCHMARKS
    if command.options is None:
        return
    options = getattr(importlib.import_module(command.module), command.options)
    if not is_dataclass(options):
        if not argv:
            yield from options
            return
        options = options.get(argv[0])
    given = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in argv}
    if is_dataclass(options):
        names = [item.name for item in fields(options) if item.name not in given]
        yield from (f"--{name.replace('_', '-')}" if dashed else f"{name}=" for name in names)
