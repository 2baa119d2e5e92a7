"""The commands of `idp`: the module of each, and where its options are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        name: as it is typed.
        help: its line in `idp --help`.
        module: whose `main` reads the words of `sys.argv`.
        options: what in that module is the dataclass of its options, or a mapping of such by action; None: its words
            are those of a run, or each benchmark's own.
        help_of: `module:name` of its `--help`, a text or a function of the words that gives one, where the module
            itself would take long to import.
        before: words that are put in front of the user's.
        after: words that are put behind them.
        hydra: whether its words are those of a run's config.
    """

    name: str
    help: str
    module: str
    options: str | None = None
    help_of: str | None = None
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    hydra: bool = False


ANALYZE = "idp.analyze.__main__"
RUN_HELP, PLAN_HELP = "idp.usage:help_of", "idp.plan.command:HELP"
_ALL = (
    Command("run", "compress, repair and evaluate a model; with -m, a sweep", "idp.run", None, RUN_HELP, hydra=True),
    Command(
        "plan", "what a run would make or reuse, and what it takes", "idp.run", None, PLAN_HELP, (), ("--plan",), True
    ),
    Command("sweep", "status, wait or resume: the cells of a sweep", "idp.sweep.__main__", "OPTIONS"),
    Command("report", "tables, plots and a page over many runs", "idp.report.__main__", "ReportOptions"),
    Command(
        "compare",
        "a study's models, or any two runs: effect, interval, test",
        ANALYZE,
        "CompareOptions",
        before=("compare",),
    ),
    Command("analyze", "claims of the papers, displaced documents, choice of prompts, similarity", ANALYZE, "OPTIONS"),
    Command("generate", "dense, compressed and repaired answers side by side", "idp.generate", "GenerateOptions"),
    Command("export", "a run's model as a checkpoint for other programs", "idp.export.__main__", "ExportOptions"),
    Command("fetch", "download what a run or a sweep takes from the hub", "idp.fetch", hydra=True),
    Command("store", "list, verify or prune stored products", "idp.store_command", "OPTIONS"),
    Command("dashboard", "a W&B workspace and report over many runs", "idp.dashboard", "DashboardOptions"),
    Command("bench", "the benchmarks, of a checkout", "idp.bench.__main__"),
)
COMMANDS = {command.name: command for command in _ALL}
