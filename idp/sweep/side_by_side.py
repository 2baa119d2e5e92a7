"""What the launchers of this machine share: a cell whose process is killed is named, and costs no other cell."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from idp.errors import UserError
from idp.grid import GRIDS
from idp.records.sweeps import SweepCell
from idp.sweep.cell_status import short

SECONDS_TO_STOP = 30.0  # after Ctrl-C: a run lets go of its locks, and says in its status file what happened


class Ending:
    """What becomes of a sweep's cells: says of each that was killed which it was, and in the end how to go on.

    Args:
        config: Hydra's config of the sweep.
        cells: the overrides of each cell.
    """

    def __init__(self, config: DictConfig, cells: Sequence[Sequence[str]]):
        self.overrides = [list(overrides) for overrides in cells]
        self.names = short([SweepCell(overrides, None) for overrides in self.overrides])
        self.folder, self.sweeper = str(config.hydra.sweep.dir), config.hydra.runtime.choices["hydra/sweeper"]
        self.killed: dict[int, str] = {}

    def of_killed(self, index: int, how: str) -> JobReturn:
        """The result of a cell whose process is gone."""
        self.killed[index] = f"{self.names[index]} ({how})"
        print(f"killed: {self.killed[index]}; the other cells go on", file=sys.stderr, flush=True)
        return failed(self.overrides[index], UserError(f"a cell was killed: {self.killed[index]}"))

    def results(self, found: Sequence[JobReturn]) -> Sequence[JobReturn]:
        """What the sweeper is given.

        Raises:
            UserError: cells were killed, and the sweeper is Hydra's own, which would name the first failure alone.
        """
        if not self.killed or self.sweeper not in GRIDS:
            return found
        named = "; ".join(text for _, text in sorted(self.killed.items()))
        resume = f"python -m idp.sweep resume {shlex.quote(os.path.relpath(self.folder))}"
        raise UserError(
            f"{len(self.killed)} of {len(found)} cells killed, perhaps for want of memory: {named}. The others have"
            f" ended; to go on: {resume}"
        )


def failed(overrides: Sequence[str], error: Exception) -> JobReturn:
    done = JobReturn(overrides=list(overrides))
    done.status, done.return_value = JobStatus.FAILED, error
    return done


def end_in_good_order() -> None:
    """Has Ctrl-C and SIGTERM end a cell as Ctrl-C ends a run; a second one, such as the sweep's, changes nothing."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def check_folder(folder: str) -> None:
    """Refuses a sweep's folder in whose name submitit and SLURM would replace `%j`, `%t` and others.

    Raises:
        UserError: it has a percent sign.
    """
    place = os.path.abspath(folder)
    if "%" in place:
        raise UserError(f"output: {place} has a percent sign, which SLURM and submitit replace; choose another name")
