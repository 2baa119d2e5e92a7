"""`idp sweep status | wait | resume [FOLDER]`: where each cell of a sweep stands, and the way on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from idp.command import failures_in_one_line, help_text, parse_action, quiet_libraries, wants_help, word
from idp.errors import UserError

if TYPE_CHECKING:
    from idp.records.sweeps import Command, Sweep

OPENING = """idp sweep: where each cell of a sweep stands, and the way on

  idp sweep status            list the cells: done, running, queued, failed (and why), missing
  idp sweep wait              stay until no cell runs or is queued; the exit status is 0 if all are done
  idp sweep resume            give the sweep's command again: what is missing or failed is submitted; also with
                              other options of the launcher, such as hydra.launcher.timeout_min=480

A sweep is started by idp run -m (docs/slurm.md)."""


@dataclass
class StatusOptions:
    """Of what says where the cells stand."""

    folder: str | None = word(
        "the sweep's folder (default: the last one in outputs/sweeps)", positional=True, default=None
    )
    json: bool = word("print JSON", default=False)


@dataclass
class ResumeOptions:
    """Of giving the command again."""

    folder: str | None = word(
        "the sweep's folder (default: the last one in outputs/sweeps)", positional=True, default=None
    )


OPTIONS = {"status": StatusOptions, "wait": StatusOptions, "resume": ResumeOptions}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; what goes wrong is one line on standard error."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or wants_help(argv):
        print(OPENING)
        for name, options in OPTIONS.items():
            print(help_text(options, f"\n{name}:"))
        sys.exit(0 if argv else "error: which action?")
    quiet_libraries()
    with failures_in_one_line("interrupted; the jobs go on", command="sweep"):
        launcher = [each for each in argv if "=" in each and _is_hydras(each)] if argv[0] == "resume" else []
        _, options = parse_action(OPTIONS, [each for each in argv if each not in launcher], "action")
        act(argv[0], options, launcher)


def _is_hydras(given: str) -> bool:
    return not given.startswith(("--", "folder=")) and not Path(given).exists()


def act(action: str, options: StatusOptions | ResumeOptions, launcher: Sequence[str] = ()) -> None:
    """Does what the command line asks for.

    Raises:
        UserError: there is no such sweep, or `launcher` has options of anything else.
    """
    from idp.records.sweeps import newest, read
    from idp.sweep import cell_status

    sweep = read(Path(options.folder) if options.folder else newest(_sweeps()))
    if isinstance(options, ResumeOptions):
        return resume(sweep, list(launcher))
    found = cell_status.wait(sweep, _progress) if action == "wait" else cell_status.statuses(sweep)
    if options.json:
        print(json.dumps([asdict(status) for status in found], indent=1))
    else:
        print(cell_status.table(sweep, found))
    if action == "wait" and any(status.state != "done" for status in found if not status.cell.replaced):
        sys.exit(1)


def resume(sweep: Sweep, launcher: list[str]) -> None:
    """Becomes the sweep's own command, where it was given; the launcher leaves alone what is done or in the queue.

    Of several commands with the same folder, those before the last are given again first.

    Raises:
        UserError: other options than the launcher's are given.
    """
    from idp.sweep.cell_status import statuses

    if strange := [word for word in launcher if not word.startswith("hydra.launcher.")]:
        raise UserError(f"{strange[0]}: only hydra.launcher.* may differ from the sweep's command; start a new sweep")
    if not any(status.open for status in statuses(sweep)):
        print(f"{sweep.folder}: nothing is missing, and nothing failed")
        return
    for given in (*sweep.earlier, sweep.last()):
        if not Path(given.directory).is_dir():
            raise UserError(f"{given.directory}: the sweep's command was given there, and it is gone; give it again")
    for earlier in sweep.earlier:
        subprocess.run(_again(earlier, launcher if earlier.launcher == sweep.launcher else []), cwd=earlier.directory)
    os.chdir(sweep.directory)
    sys.stdout.flush()
    os.execv(sys.executable, _again(sweep.last(), launcher))


def _again(given: Command, launcher: list[str]) -> list[str]:
    return [sys.executable, "-m", "idp.run", *given.command, *launcher]


def _sweeps() -> Path:
    from omegaconf import OmegaConf

    from idp.config import conf_dir

    return Path(OmegaConf.load(conf_dir() / "config.yaml").output) / "sweeps"


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
