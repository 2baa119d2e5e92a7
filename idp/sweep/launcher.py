"""`hydra/launcher=slurm`: submitit's launcher that leaves once its jobs are in the queue, and submits no cell twice."""

from __future__ import annotations

import os
import secrets
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as SubmititLauncher
from omegaconf import OmegaConf

from idp.errors import UserError
from idp.grid import GRIDS
from idp.records.record import RECORD, heldout_loss, load
from idp.store.lease import lease_at, wait_for
from idp.sweep import cells as listing
from idp.sweep import queue
from idp.sweep.cell_status import CellStatus, statuses, wait
from idp.sweep.side_by_side import check_folder

LARGEST_ARRAY = 1000  # jobs; SLURM's own default limit is 1001


class SlurmLauncher(SubmititLauncher):
    """Submits a sweep's cells as SLURM job arrays.

    Args:
        wait: stay until all cells have ended, and give the sweeper their results.
        params: submitit's own.
    """

    def __init__(self, wait: bool, **params: Any) -> None:
        super().__init__(**params)
        self.wait = wait

    def __call__(self, *job: Any) -> JobReturn:
        """One cell, in its SLURM job, which fails if the cell does."""
        import idp.run  # noqa: F401  its settings for libraries

        done = super().__call__(*job)
        _ = done.return_value  # raises what the cell raised
        return done

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submits the cells that are missing or failed.

        Returns:
            nothing, or with `wait` the result of every cell, in the order of `job_overrides`.

        Raises:
            UserError: SLURM is not here or refuses, the sweep's folder has a name that SLURM takes for another, or the
                sweeper needs results and nobody waits for them.
        """
        sweeper = self.config.hydra.runtime.choices["hydra/sweeper"]
        if sweeper not in GRIDS and not self.wait:
            raise UserError(f"hydra/sweeper={sweeper} needs the results of its cells: add hydra.launcher.wait=true")
        check_folder(str(self.config.hydra.sweep.dir))
        sweep = listing.list_cells(self.config, self.hydra_context.config_loader, job_overrides)
        wanted = {tuple(overrides): number for number, overrides in enumerate(job_overrides, start=initial_job_idx)}
        sweep.cells = [cell for cell in sweep.cells if tuple(cell.overrides) in wanted and not cell.replaced]
        with wait_for(lease_at(sweep.folder.parent / ".lock")):  # another sweep may have cells in common with this one
            found = statuses(sweep)
            todo = [status.cell for status in found if status.open and status.cell.folder is not None]
            size = queue.longest_array(LARGEST_ARRAY) if len(todo) > 1 else 1
            for start in range(0, len(todo), size):
                try:
                    self._submit(sweep, todo[start : start + size], wanted)
                except UserError as error:
                    given = f"only {start} of {len(todo)} cells were submitted" if start else "nothing was submitted"
                    raise UserError(f"hydra/launcher=slurm: {given}: {error}") from error
        _say(sweep, found, len(todo))
        if not self.wait:
            return []
        ended = {tuple(status.cell.overrides): status for status in wait(sweep)}  # earlier batches' cells come first
        return [_result(ended[tuple(overrides)]) for overrides in job_overrides]

    def _submit(
        self, sweep: listing.Sweep, cells: list[listing.SweepCell], numbers: dict[tuple[str, ...], int]
    ) -> None:
        """Submits cells as one job array, whose name no other job has.

        Raises:
            UserError: SLURM refuses, for a reason that it gives.
        """
        import submitit

        params = dict(self.params)
        folder, timeouts = params.pop("submitit_folder"), params.pop("max_num_timeout")
        name = f"{params.pop('name')}-{secrets.token_hex(4)}"
        state = Singleton.get_state()
        arguments = [
            (cell.overrides, "hydra.sweep.dir", numbers[tuple(cell.overrides)], f"{name}_{index}", state)
            for index, cell in enumerate(cells)
        ]
        plain = OmegaConf.structured(BaseQueueConf).keys()
        options = {key if key in plain else f"slurm_{key}": value for key, value in params.items()}
        made = listing.submit(sweep, name, cells)
        try:
            executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=timeouts)
            executor.update_parameters(name=name, **options)
            jobs = executor.map_array(self, *zip(*arguments, strict=True))
        except (RuntimeError, OSError, submitit.core.utils.FailedJobError) as error:
            listing.withdraw(sweep, made)
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise UserError(lines[-1] if lines else str(error)) from error
        listing.submitted(sweep, made, jobs[0].job_id.partition("_")[0])


def _say(sweep: listing.Sweep, found: Sequence[CellStatus], submitted: int) -> None:
    counts = Counter(status.state for status in found if not status.open)
    parts = [f"{submitted} of {len(found)} cells submitted", *(f"{count} {state}" for state, count in counts.items())]
    print(", ".join(parts))
    for status in found:
        if status.cell.folder is None:
            print(f"not submitted: {' '.join(status.cell.overrides)}: {status.remark}")
    place = shlex.quote(os.path.relpath(sweep.folder))
    print(f"to see how they are: python -m idp.sweep status {place}", flush=True)


def _result(status: CellStatus) -> JobReturn:
    """What the sweeper is told of a cell: the held-out loss, or the reason why there is none."""
    done = JobReturn(overrides=status.cell.overrides)
    if status.state == "done":
        record = load(Path(status.cell.folder or "") / RECORD)
        done.status, done.return_value = JobStatus.COMPLETED, heldout_loss(record)
    else:
        done.status, done.return_value = JobStatus.FAILED, UserError(f"a cell failed: {status.remark}")
    return done
