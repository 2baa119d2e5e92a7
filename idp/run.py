"""`python -m idp.run`: composes a config, runs it, prints the table and the record's path.

config -> [load] -> dense -> [compress] -> compressed -> [recover] -> repaired -> [measure] -> [track] -> record
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from idp.checks import check
from idp.command import failures_in_one_line, quiet_libraries
from idp.composed import with_plus
from idp.config import conf_dir
from idp.errors import UserError
from idp.overrides import rewritten
from idp.records.record import heldout_loss
from idp.registry import register

quiet_libraries()

PLAN = "--plan"  # print what would be made, and compute nothing
FAILED: list[UserError] = []


@hydra.main(version_base="1.3", config_path=str(conf_dir().absolute()), config_name="config")
def job(composed: DictConfig) -> float | None:
    """One run of a sweep, or the only one. Returns the held-out loss, for sweepers that minimise one."""
    from idp.preemption import requeued
    from idp.status import set_up_logging

    set_up_logging()
    try:
        config = check(composed)
        from idp import memory
        from idp.pipeline import run
        from idp.records.tables import run_summary, run_table

        memory.of_runs_alone()
        with requeued():
            record, place = run(config)
    except UserError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # the launcher tells which cell it was, and goes on
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise
        FAILED.append(error)  # raised by `main`: Hydra would add lines of its own
        return None
    sections = [run_table(record), run_summary(record), _next(place), record["idp"]["conclusion"], f"record: {place}"]
    print("", *filter(None, sections), sep="\n\n", flush=True)  # tools read the last line
    return heldout_loss(record)


def _next(place: Path) -> str:
    """The commands that let the model of a single run speak and draw it; nothing between the runs of a sweep."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return ""
    python = Path(sys.executable)
    if shutil.which("python") == str(python):
        python = Path("python")
    elif python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    command = [str(python), "-m", "idp.generate", f"record={place.parent}", "prompt=What is 2+2?"]
    report = [str(python), "-m", "idp.report", str(place.parents[1])]
    return f"to see tables, plots and a page: {shlex.join(report)}\nto see it answer: {shlex.join(command)}"


@contextlib.contextmanager
def given(argv: Sequence[str]) -> Iterator[None]:
    """Within this Hydra reads a sweep's command line as `idp.grid` makes it."""
    from idp import grid

    before = sys.argv
    grid.typed[:] = argv
    sys.argv = [before[0], *rewritten(with_plus(argv))]
    try:
        yield
    finally:
        sys.argv = before
        grid.typed.clear()


def main() -> None:
    """The command line: every failure is one line on standard error and a non-zero exit status."""
    from idp.usage import check_flags, explain, help_of

    if PLAN in sys.argv[1:]:
        from idp.plan.command import main as plan

        plan(sys.argv[1:])
        return
    if {"-h", "--help"} & set(sys.argv[1:]):  # Hydra would list every group's options first, for seven seconds
        with failures_in_one_line():
            print(help_of(sys.argv[1:]))
        return
    with failures_in_one_line("interrupted; the same command continues where it stopped", explain):
        register(sys.argv[1:])
        check_flags(sys.argv[1:])
        with given(sys.argv[1:]):
            job()
        if FAILED:
            raise FAILED.pop()


if __name__ == "__main__":
    main()
