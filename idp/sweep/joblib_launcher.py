"""`hydra/launcher=joblib`: cells side by side in processes of this machine, one of which may be killed.

Hydra's own launcher has one pool for all processes, which is lost with any of them, and so are the cells.
"""

from __future__ import annotations

import os
import queue
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, setup_globals
from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher as HydrasLauncher

from idp.errors import UserError
from idp.sweep.side_by_side import SECONDS_TO_STOP, Ending, end_in_good_order

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class JoblibLauncher(HydrasLauncher):
    """Hydra's launcher, with a pool of its own for each process.

    Args:
        n_jobs: cells at the same time; as joblib has it, -1 stands for as many as there are cores.
    """

    def __init__(self, n_jobs: int):
        super().__init__()
        self.n_jobs = n_jobs

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the cells.

        Raises:
            UserError: some were killed, or there is no number of them to run at the same time.
        """
        import joblib

        if self.n_jobs == 0:
            raise UserError("hydra.launcher.n_jobs=0: say how many cells run at the same time; -1: as many as cores")
        assert self.config is not None
        setup_globals()
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        ending = Ending(self.config, job_overrides)
        slots = min(joblib.effective_n_jobs(self.n_jobs), len(job_overrides))
        workers, threads = _Workers(max(1, joblib.cpu_count() // slots)), ThreadPoolExecutor(slots)
        common = (self.hydra_context, self.config, self.task_function, Singleton.get_state())

        def cell(index: int) -> JobReturn:
            try:
                number = initial_job_idx + index
                return workers.run(_cell, number, list(job_overrides[index]), *common)
            except Killed as error:
                return ending.of_killed(index, str(error))

        running = [threads.submit(cell, index) for index in range(len(job_overrides))]
        try:
            found = [each.result() for each in running]
        except KeyboardInterrupt:
            threads.shutdown(wait=False, cancel_futures=True)
            workers.stop()
            wait([each for each in running if not each.cancelled()], timeout=SECONDS_TO_STOP)
            raise
        finally:
            workers.close()
        return ending.results(found)


def _cell(*arguments: Any) -> JobReturn:
    """One cell, in a worker."""
    from hydra_plugins.hydra_joblib_launcher._core import execute_job

    end_in_good_order()
    done: JobReturn = execute_job(*arguments)
    return done


class Killed(Exception):
    """A worker was ended from outside; how."""


class _Workers:
    """Processes that are used again for cell after cell, each in a pool of its own: a pool breaks as a whole.

    Args:
        threads: of each process, unless the environment says otherwise.
    """

    def __init__(self, threads: int):
        self._environment = {name: os.environ.get(name, str(threads)) for name in THREADS}
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._all: list[Any] = []
        self._lock = threading.Lock()

    def run(self, function: Any, *arguments: Any) -> Any:
        """What the function returns or raises, in an idle process or a new one.

        Raises:
            Killed: the process was ended while it ran.
        """
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        try:
            worker = self._idle.get_nowait()
        except queue.Empty:
            worker = self._new()
        try:
            done = worker.submit(function, *arguments).result()
        except TerminatedWorkerError as error:
            how = re.search(r"\{(\w+)\(", str(error))
            raise Killed(how[1] if how else "its process ended") from error
        self._idle.put(worker)
        return done

    def _new(self) -> Any:
        from joblib.externals.loky.process_executor import ProcessPoolExecutor

        with self._lock:
            self._all.append(ProcessPoolExecutor(max_workers=1, env=self._environment))
            return self._all[-1]

    def stop(self) -> None:
        """Has them end what they do."""
        for worker in self._all:
            for process in list((worker._processes or {}).values()):
                process.terminate()

    def close(self) -> None:
        """Ends all of them."""
        for worker in self._all:
            worker.shutdown(wait=True, kill_workers=True)
