"""`idp <command> ...`: one name for every command line, each of which is also `python -m` and its module."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import idp
from idp.command import failures_in_one_line, nearest, wants_help
from idp.commands import COMMANDS, Command
from idp.errors import UserError

COMPLETION = ("-sc", "--shell-completion")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: every failure is one line on standard error and a non-zero exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    first, rest = (given[0], given[1:]) if given else ("", [])
    if first in ("", "-h", "--help", "help"):
        known = COMMANDS.get(rest[0]) if first == "help" and rest else None
        if known is not None:
            return run(known, ["--help"])
        print(text())
        sys.exit(0 if given else 2)
    if first in ("-V", "--version"):
        return print(version())
    if first.partition("=")[0] in COMPLETION:
        from idp.completion import answer

        return answer(given)
    if first in COMMANDS:
        return run(COMMANDS[first], rest)
    with failures_in_one_line():
        if not _is_override(first):
            raise UserError(f"{first}: no such command{nearest(first, COMMANDS)} (there are {', '.join(COMMANDS)})")
    print(f"note: idp {first} ... is short for idp run {first} ...", file=sys.stderr)
    run(COMMANDS["run"], given)


def run(command: Command, argv: Sequence[str]) -> None:
    """Runs a command as `python -m` would run its module."""
    if command.help_of is not None and wants_help(argv):
        with failures_in_one_line():
            return print(_help(command.help_of, argv))
    module = importlib.import_module(command.module)
    sys.argv = [str(module.__file__), *command.before, *argv, *command.after]
    module.main()


def text() -> str:
    """The text of `idp --help`."""
    lines = "\n".join(f"  {command.name:<10} {command.help}" for command in COMMANDS.values())
    return f"""usage: idp <command> [key=value ...]

Repairs compressed language models with prompts and adapters, and measures what each repair brings back.

{lines}

  idp run compressor=gptq4 recovery=idp task=all
  idp report outputs/runs

idp <command> --help has a command's options, idp --version the versions. Options are key=value; those of every command
but run, plan and fetch also --key value. python -m idp.<command> is the same."""


def version() -> str:
    """This version, and those of the libraries that results depend on most; none is imported."""
    import platform
    from importlib import metadata

    found = [f"Python {platform.python_version()}"]
    for name in ("torch", "transformers", "llmcompressor"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return f"idp {idp.__version__} ({', '.join(found)})"


def _help(place: str, argv: Sequence[str]) -> str:
    module, name = place.split(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError:  # a plan is a run's, and so is its help
        from idp.usage import help_of as found
    return found if isinstance(found, str) else str(found(argv))


def _is_override(given: str) -> bool:
    """Whether a word is one of Hydra's, with which `idp` once began a run at once."""
    return "=" in given or given.startswith(("-", "+", "~"))
