"""A run's folder: its lock, its log, and `status.json`, which says at any moment how far the run is."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from filelock import Timeout

from idp.errors import UserError, disk_trouble, lacks_memory, out_of_memory
from idp.preemption import STOP, Stopped
from idp.store import write_json
from idp.store.lease import lease_at, process_token, wait_for

log = logging.getLogger("idp")

STATUS, LOG, LOCK = "status.json", "run.log", ".lock"
TIME = "%Y-%m-%dT%H:%M:%SZ"


class Status:
    """Writes `status.json`: state (running, queued, done, failed), stage, and the one-line reason of a failure.

    `queued` is said by a run that SLURM stopped and queued again; `job` and `submission` are the number and the name of
    its SLURM job; `process` tells its process from a later one of the same `pid`; `folder` is where it was begun, which
    tells a copy of it.
    """

    def __init__(self, folder: Path, name: str):
        self.path = folder / STATUS
        self.values = {
            "name": name,
            "folder": str(folder.absolute()),
            "state": "running",
            "stage": "start",
            "started": _now(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process": process_token(os.getpid()),
            "job": _slurm_job(),
            "submission": os.environ.get("SLURM_JOB_NAME"),
            "restarts": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
            "error": None,
            "record": None,
        }

    def update(self, **values: object) -> None:
        """Changes some values and writes the whole file, atomically."""
        self.values |= values
        write_json(self.path, {**self.values, "updated": _now()})

    def stage(self, name: str) -> None:
        """Says which stage the run is in.

        Raises:
            Stopped: SLURM wants it to stop.
        """
        STOP.now_if_asked()
        log.info("stage: %s", name)
        self.update(stage=name)


class _Log(logging.FileHandler):
    """The run's log. A full disk costs lines of it, and nothing else: what needs the space says so."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def run_folder(folder: Path, name: str) -> Iterator[Status]:
    """Holds a run's folder: one process at a time, its log in `run.log`, its state in `status.json`.

    A failure is written to both and raised as a `UserError` of one line; the traceback is in the log alone.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handler = _Log(folder / LOG)
    except OSError as error:
        raise UserError(f"output: cannot write in {folder} ({error.strerror or error}); use output=...") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    lock = lease_at(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("%s: the same run is going on in another process; waiting for it", folder)
        wait_for(lock)
    root = logging.getLogger()
    root.addHandler(handler)
    status = Status(folder, name)
    try:
        for left in folder.glob(".*.tmp"):  # of a killed run
            left.unlink()
        status.update()
        yield status
        status.update(state="done", stage="end")
    except BaseException as error:
        if stopped := STOP.cause(error):
            _say_stopped(status, stopped)
            raise stopped from (None if stopped is error else error)
        failure = _explained(error, str(status.values["stage"]), folder)
        log.debug("failed at stage %s\n%s", status.values["stage"], traceback.format_exc())
        with contextlib.suppress(OSError):
            status.update(state="failed", error=str(failure) or type(error).__name__)
        with contextlib.suppress(OSError):
            if handler.stream is not None:
                handler.stream.write(traceback.format_exc())
        if failure is error:
            raise
        raise failure from error
    finally:
        root.removeHandler(handler)
        handler.close()
        lock.release()


def _say_stopped(status: Status, stopped: Stopped) -> None:
    """The state of a run that SLURM stopped, and what becomes of it if SLURM does not queue it again."""
    stage = status.values["stage"]
    log.warning("stopped at stage %s by SLURM (%s)", stage, stopped)
    with contextlib.suppress(OSError):
        if stopped.requeues:
            status.update(state="queued")
            stopped.on_refusal = lambda reason: status.update(state="failed", error=reason)
        else:
            status.update(state="failed", error=f"SLURM ended it at stage {stage} ({stopped})")


def _explained(error: BaseException, stage: str, folder: Path) -> BaseException:
    """The error as the user is told of it, in one line."""
    if isinstance(error, UserError) or not isinstance(error, Exception):
        return error
    if lacks_memory(error):
        return out_of_memory(stage.partition(":")[0])
    reason = disk_trouble(error)
    if reason is not None:
        place = getattr(error, "filename", None) or folder
        return UserError(
            f"stage {stage}: {reason} ({place}). Free some space or choose another folder with output=..., then run the"
            " same command again: finished stages are kept"
        )
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return UserError(f"stage {stage}: {reason}; the traceback is in {folder / LOG}")


def set_up_logging() -> None:
    """Our own messages go to standard error as plain lines; of libraries only errors are shown, the log has more."""
    root = logging.getLogger()
    for handler in list(root.handlers):  # Hydra's own, or an earlier run's of the same sweep
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            root.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(lambda entry: entry.name.startswith("idp") or entry.levelno >= logging.ERROR)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    log.setLevel(logging.INFO)
    logging.captureWarnings(True)


def _slurm_job() -> str | None:
    """The number of the SLURM job that this process is in, as squeue shows it."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def _now() -> str:
    return time.strftime(TIME, time.gmtime())
