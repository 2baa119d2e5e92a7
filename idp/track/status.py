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

from filelock import FileLock, Timeout

from idp.errors import UserError, disk_trouble
from idp.store import write_json

log = logging.getLogger("idp")

STATUS, LOG = "status.json", "run.log"


class Status:
    """Writes `status.json`: state (running, done, failed), stage, and the one-line reason of a failure."""

    def __init__(self, folder: Path, name: str):
        self.path = folder / STATUS
        self.values = {
            "name": name,
            "state": "running",
            "stage": "start",
            "started": _now(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "error": None,
            "record": None,
        }

    def update(self, **values: object) -> None:
        """Changes some values and writes the whole file, atomically."""
        self.values |= values
        write_json(self.path, {**self.values, "updated": _now()})

    def stage(self, name: str) -> None:
        """Says which stage the run is in."""
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
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("%s: the same run is going on in another process; waiting for it", folder)
        lock.acquire()
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
        said = _said(error, status.values["stage"], folder)
        log.debug("failed at stage %s\n%s", status.values["stage"], traceback.format_exc())
        with contextlib.suppress(OSError):
            status.update(state="failed", error=str(said) or type(error).__name__)
        with contextlib.suppress(OSError):
            handler.stream.write(traceback.format_exc())
        if said is error:
            raise
        raise said from error
    finally:
        root.removeHandler(handler)
        handler.close()
        lock.release()


def _said(error: BaseException, stage: str, folder: Path) -> BaseException:
    """The error as the user is told of it, in one line."""
    if isinstance(error, UserError) or not isinstance(error, Exception):
        return error
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


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
