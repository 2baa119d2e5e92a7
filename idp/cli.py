"""`idp <command> ...`: one name for every command line, each of which is also `python -m` and its module."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import idp
from idp.command import failures_in_one_line, nearest, wants_help
from idp.errors import UserError


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        name: as it is typed.
        help: its line in `idp --help`.
        module: whose `main` reads the words of `sys.argv`.
        options: what in that module is the dataclass of its options, or a mapping of such by action; None: its words
            are those of a run, or each benchmark's own.
        before: words that are put in front of the user's.
        after: words that are put behind them.
        hydra: whether its words are those of a run's config.
    """

    name: str
    help: str
    module: str
    options: str | None = None
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    hydra: bool = False


ANALYZE = "idp.analyze.__main__"
_ALL = (
    Command("run", "compress, repair and evaluate a model; with -m, a sweep", "idp.run", hydra=True),
    Command("plan", "what a run would make or reuse, and what it takes", "idp.run", hydra=True, after=("--plan",)),
    Command("sweep", "status, wait or resume: the cells of a sweep", "idp.sweep.__main__", "OPTIONS"),
    Command("report", "tables, plots and a page over many runs", "idp.report.__main__", "Options"),
    Command("compare", "every repair and compressor: effect, interval, test", ANALYZE, "Runs", before=("compare",)),
    Command("analyze", "claims of the papers, displaced documents, choice of prompts, similarity", ANALYZE, "OPTIONS"),
    Command("generate", "dense, compressed and repaired answers side by side", "idp.generate", "Options"),
    Command("export", "a run's model as a checkpoint for other programs", "idp.export.__main__", "Options"),
    Command("fetch", "download what a run or a sweep takes from the hub", "idp.fetch", hydra=True),
    Command("store", "list, verify or prune stored products", "idp.store_command", "OPTIONS"),
    Command("dashboard", "a W&B workspace and report over many runs", "idp.dashboard", "Options"),
    Command("bench", "the benchmarks, of a checkout", "idp.bench.__main__"),
)
COMMANDS = {command.name: command for command in _ALL}
COMPLETION = ("-sc", "--shell-completion")


def main(words: Sequence[str] | None = None) -> None:
    """The command line: every failure is one line on standard error and a non-zero exit status."""
    given = list(sys.argv[1:] if words is None else words)
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


def run(command: Command, words: Sequence[str]) -> None:
    """Runs a command as `python -m` would run its module."""
    if command.module == "idp.run" and wants_help(words):
        from idp.usage import text as help_of_runs  # without Hydra's second

        return print(help_of_runs())
    module = importlib.import_module(command.module)
    sys.argv = [str(module.__file__), *command.before, *words, *command.after]
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


def _is_override(given: str) -> bool:
    """Whether a word is one of Hydra's, with which `idp` once began a run at once."""
    return "=" in given or given.startswith(("-", "+", "~"))
