"""What SLURM knows of jobs: squeue of those that wait or run, sacct, where there is accounting, of those that ended."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass

from idp.errors import UserError

RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT")
SECONDS_TO_ANSWER = 60
NAMES_AT_ONCE = 200  # of a command line

Place = tuple[str, int]  # a job's name, and its number in the array


@dataclass(frozen=True)
class Job:
    """A job in the queue: its number (`12_3`), SLURM's word for its state, and why it waits."""

    number: str
    state: str
    reason: str

    @property
    def running(self) -> bool:
        return self.state in RUNNING


def jobs(names: Collection[str]) -> dict[Place, Job]:
    """The jobs of these names that wait or run, whoever submitted them: a sweep's folder may be shared.

    Raises:
        UserError: squeue is not here or does not answer.
    """
    found, wanted = {}, sorted(names)
    for start in range(0, len(wanted), NAMES_AT_ONCE):
        named = f"--name={','.join(wanted[start : start + NAMES_AT_ONCE])}"
        for line in _ask("squeue", "--noheader", "--array", named, "--format=%F|%K|%T|%r|%j"):
            number, index, state, reason, name = line.split("|", 4)
            if name in names:
                array = index.isdecimal()
                found[name, int(index) if array else 0] = Job(f"{number}_{index}" if array else number, state, reason)
    return found


def longest_array(otherwise: int) -> int:
    """How many jobs an array may have here, at most `otherwise`, which is also the answer where SLURM gives none."""
    try:
        lines = _ask("scontrol", "show", "config", holds="MaxArraySize")
        return max(1, min(otherwise, int(lines[0].partition("=")[2])))  # 0: there are no arrays
    except (UserError, IndexError, ValueError):
        return otherwise


def hides_others() -> bool:
    """Whether this user is shown nobody else's jobs."""
    try:
        lines = _ask("scontrol", "show", "config", holds="PrivateData") if os.geteuid() else []
    except UserError:
        return False
    return any("jobs" in line.partition("=")[2].split(",") for line in (line.replace(" ", "") for line in lines))


def ended(names: Collection[str], since: float) -> dict[Place, str]:
    """How jobs ended, in SLURM's word (FAILED, OUT_OF_MEMORY, TIMEOUT, ...); empty where there is no accounting."""
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since - 60))
    wanted = f"--name={','.join(names)}"
    found = {}
    try:
        options = ("--noheader", "--parsable2", "--allocations", f"--starttime={start}", wanted)
        for line in _ask("sacct", *options, "--format=JobID,State,JobName"):
            number, state, name = line.split("|", 2)
            index = number.partition("_")[2]
            if name in names and (index.isdecimal() or not index):
                found[name, int(index or 0)] = state.split()[0]  # CANCELLED by 1000
    except UserError:
        pass
    return found


def _ask(*command: str, holds: str = "|") -> list[str]:
    """The lines of its answer that have `holds` in them."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER)
    except FileNotFoundError as error:
        raise UserError(f"{command[0]} is not on this machine: ask on one that has SLURM") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} did not answer within {SECONDS_TO_ANSWER} s: try again later") from error
    if done.returncode:
        message = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise UserError(f"{command[0]} does not answer: {message}")
    return [line for line in done.stdout.splitlines() if holds in line]
