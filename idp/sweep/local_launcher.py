"""`hydra/launcher=submitit_local`: every cell in a process of its own on this machine, all at once; any may be killed.

submitit's own launcher ends a cell after an hour and begins it again three times, and leaves at the first that fails
while the others run on. Here nothing ends a cell unless it is asked for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import LocalLauncher
from omegaconf import OmegaConf

from idp.sweep.side_by_side import SECONDS_TO_STOP, Ending, check_folder, end_in_good_order, failed

NO_LIMIT = 10 * 365 * 24 * 60  # minutes: submitit wants a number
POLL_SECONDS = 0.2


class SubmititLocalLauncher(LocalLauncher):
    """Starts a sweep's cells, and stays until all have ended.

    Args:
        timeout_min: after how many minutes a cell is told to save and end; None: never.
        max_num_timeout: how often it is begun again after that.
        params: submitit's own.
    """

    def __init__(self, timeout_min: int | None, max_num_timeout: int, **params: Any) -> None:
        super().__init__(**params)
        self.timeout_min, self.max_num_timeout = timeout_min, max_num_timeout
        self.visible = os.environ.get("CUDA_VISIBLE_DEVICES")

    def __call__(self, *job: Any) -> JobReturn:
        """One cell, in its process."""
        if self.params.get("gpus_per_node") is None:  # submitit hides all GPUs from a cell that names no number of them
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            os.environ |= {} if self.visible is None else {"CUDA_VISIBLE_DEVICES": self.visible}
        end_in_good_order()
        import idp.run  # noqa: F401  its settings for libraries

        return super().__call__(*job)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the cells.

        Raises:
            UserError: some were killed, or the sweep's folder has a name that submitit takes for another.
        """
        import submitit

        assert self.config is not None
        check_folder(str(self.config.hydra.sweep.dir))
        params = {key: value for key, value in self.params.items() if value is not None}
        folder = params.pop("submitit_folder")
        ending = Ending(self.config, job_overrides)
        plain = OmegaConf.structured(BaseQueueConf).keys()
        options = {key if key in plain else f"local_{key}": value for key, value in params.items()}
        executor = submitit.AutoExecutor(folder, cluster="local", local_max_num_timeout=self.max_num_timeout)
        executor.update_parameters(timeout_min=self.timeout_min or NO_LIMIT, **options)
        state = Singleton.get_state()
        arguments = [
            (overrides, "hydra.sweep.dir", number, str(number), state)
            for number, overrides in enumerate(ending.overrides, start=initial_job_idx)
        ]
        with _deaf_to_ctrl_c():
            jobs = executor.map_array(self, *zip(*arguments, strict=True))
        try:
            return ending.results(_ended(jobs, ending))
        except KeyboardInterrupt:
            _stop_all([job._process for job in jobs])
            raise


def _ended(jobs: Sequence[Any], ending: Ending) -> list[JobReturn]:
    """The results of all cells. Failures are said as they come, as cells write to logs of their own."""
    found: dict[int, JobReturn] = {}
    while len(found) < len(jobs):
        for index, job in enumerate(jobs):
            if index not in found and job.done():
                found[index] = _result(job, index, ending)
        time.sleep(POLL_SECONDS)
    return [found[index] for index in range(len(jobs))]


def _result(job: Any, index: int, ending: Ending) -> JobReturn:
    import submitit

    if not job.paths.result_pickle.exists():
        return ending.of_killed(index, f"see {job.paths.stderr}")
    try:
        done: JobReturn = job.results()[0]
    except submitit.core.utils.FailedJobError as error:  # its config, or an import
        lines = [line for line in str(error).splitlines() if line.strip()]
        done = failed(ending.overrides[index], RuntimeError(f"{lines[-1]} (see {job.paths.stderr})"))
    if done.status == JobStatus.FAILED:
        print(f"failed: {ending.names[index]}: {done._return_value}", file=sys.stderr, flush=True)
    return done


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that start within do not hear Ctrl-C: those in which submitit watches a cell would print tracebacks.

    The cells' own listen again.
    """
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # only the main thread may
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _stop_all(watchers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends the cells by those who watch them, who pass it on."""
    with _deaf_to_ctrl_c():
        for watcher in watchers:
            watcher.terminate()
        until = time.monotonic() + SECONDS_TO_STOP
        for watcher in watchers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                watcher.wait(max(0.0, until - time.monotonic()))
