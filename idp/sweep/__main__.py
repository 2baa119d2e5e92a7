"""`python -m idp.sweep status | wait | resume [FOLDER]`: where each cell of a sweep stands, and the way on."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from idp.command import failures_in_one_line
from idp.errors import UserError

if TYPE_CHECKING:
    from idp.records.sweeps import Sweep

HELP = {
    "status": "list the cells: done, running, queued, failed (and why), missing",
    "wait": "stay until no cell runs or is queued; the exit status is 0 if all are done",
    "resume": "give the sweep's command again: what is missing or failed is submitted",
}


def main(words: list[str] | None = None) -> None:
    """The command line; what goes wrong is one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m idp.sweep", description="How a sweep is, and the way on.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in HELP.items():
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("folder", nargs="?", help="the sweep's folder; left out: the last one in outputs/sweeps")
        if name == "resume":
            action.add_argument("launcher", nargs="*", help="such as hydra.launcher.timeout_min=480")
        else:
            action.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(words)
    with failures_in_one_line("interrupted; the jobs go on"):
        act(options)


def act(options: argparse.Namespace) -> None:
    """Does what the command line asks for."""
    from idp.records.sweeps import newest, read
    from idp.sweep import standing

    if options.action == "resume" and options.folder and "=" in options.folder:
        options.launcher.insert(0, options.folder)
        options.folder = None
    sweep = read(Path(options.folder) if options.folder else newest(_sweeps()))
    if options.action == "resume":
        return resume(sweep, options.launcher)
    found = standing.wait(sweep, _progress) if options.action == "wait" else standing.standings(sweep)
    if options.json:
        print(json.dumps([asdict(stands) for stands in found], indent=1))
    else:
        print(standing.table(sweep, found))
    if options.action == "wait" and any(stands.state != "done" for stands in found):
        sys.exit(1)


def resume(sweep: Sweep, launcher: list[str]) -> None:
    """Becomes the sweep's own command, where it was given; the launcher leaves alone what is done or in the queue.

    Raises:
        UserError: other options than the launcher's are given.
    """
    from idp.sweep.standing import standings

    if strange := [word for word in launcher if not word.startswith("hydra.launcher.")]:
        raise UserError(f"{strange[0]}: only hydra.launcher.* may differ from the sweep's command; start a new sweep")
    if not any(stands.open for stands in standings(sweep)):
        print(f"{sweep.folder}: nothing is missing, and nothing failed")
        return
    command = [sys.executable, "-m", "idp.run", *sweep.command, *launcher]
    os.chdir(sweep.directory)
    sys.stdout.flush()
    os.execv(sys.executable, command)


def _sweeps() -> Path:
    from omegaconf import OmegaConf

    from idp.config import conf_dir

    return Path(OmegaConf.load(conf_dir() / "config.yaml").output) / "sweeps"


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
