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


def answer(words: Sequence[str]) -> None:
    """Answers `-sc install=<shell>` and `-sc query=<shell>`.

    Args:
        words: those of the command line.
    """
    asked = words[-1].rpartition("query=")[2] if "query=" in words[-1] else ""
    line = os.environ.get("COMP_LINE", "")
    if asked and (offered := offers(line)) is not None:
        print((" " if asked == "bash" else "\n").join(offered))
        return
    if asked:
        program, *rest = line.split(" ")
        os.environ["COMP_LINE"] = " ".join([program, *(rest[1:] if rest and rest[0] in COMMANDS else rest)])
    from idp.run import main

    sys.argv[1:] = words
    main()


def offers(line: str) -> list[str] | None:
    """What may stand where a line ends; None: what Hydra knows.

    Args:
        line: the whole line, beginning with `idp`; a blank at its end begins a new word.
    """
    words = line.split()[1:]
    started = words.pop() if words and not line.endswith(" ") else ""
    if not words:
        if "=" in started:
            return None
        return [name for name in COMMANDS if name.startswith(started)]
    command = COMMANDS.get(words[0])
    if command is None or command.hydra:
        return None
    return [each for each in _of(command, words[1:], started.startswith("--")) if each.startswith(started)]


def _of(command: Command, words: Sequence[str], dashed: bool) -> Iterator[str]:
    if command.name == "bench" and not words:
        from idp.bench import BENCHMARKS

        yield from BENCHMARKS
    if command.options is None:
        return
    options = getattr(importlib.import_module(command.module), command.options)
    if not is_dataclass(options):
        if not words:
            yield from options
            return
        options = options.get(words[0])
    given = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in words}
    if is_dataclass(options):
        names = [item.name for item in fields(options) if item.name not in given]
        yield from (f"--{name.replace('_', '-')}" if dashed else f"{name}=" for name in names)
