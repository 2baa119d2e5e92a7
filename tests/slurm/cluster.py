"""A SLURM of one node on loopback: enough to try a sweep, and what tests/slurm run on. As root, without systemd.

python tests/slurm/cluster.py start /tmp/slurm   # prints what to set: eval "$(...)"
python tests/slurm/cluster.py stop /tmp/slurm
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
SECONDS_TO_START = 120
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")


def why_not() -> str | None:
    """Why no SLURM can be started here; None: it can."""
    path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
    missing = [command for command in COMMANDS if shutil.which(command, path=path) is None]
    if missing:
        return f"SLURM is not installed ({', '.join(missing)} missing): tests/slurm/install.sh installs it"
    return None if os.geteuid() == 0 else "a SLURM that starts other processes needs root"


def start(folder: Path, cpus: int = 2) -> dict[str, str]:
    """Starts the daemons with all that they write in `folder`.

    Args:
        folder: is emptied; a cluster that runs there is stopped.
        cpus: what the node claims to have, and as many GPUs; each may be used by one job.

    Returns:
        the environment in which SLURM's commands find this cluster.

    Raises:
        RuntimeError: no node was ready in time; the daemons' logs are in `folder`.
    """
    if (folder / "slurmctld.pid").exists():
        stop(folder)
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)  # munge insists
    host = socket.gethostname().split(".")[0]
    values = {"folder": folder, "host": host, "cpus": cpus}
    values |= {"controller_port": _free_port(), "node_port": _free_port()}
    lines = (HERE / "slurm.conf").read_text().splitlines()
    text = "\n".join(line if line.startswith("#") else line.format(**values) for line in lines)
    (folder / "slurm.conf").write_text(f"{text}\n")
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    devices = [folder / f"gpu{number}" for number in range(cpus)]
    for device in devices:
        device.symlink_to("/dev/null")
    (folder / "gres.conf").write_text("".join(f"NodeName={host} Name=gpu File={device}\n" for device in devices))
    (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
    (folder / "munge.key").chmod(0o400)
    environment = {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{os.environ['PATH']}{os.pathsep}/usr/sbin"}
    munge = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munged.pid"}
    munge |= {"log-file": "munged.log", "seed-file": "munge.seed"}
    daemons = [["munged", *(f"--{option}={folder}/{name}" for option, name in munge.items())]]
    daemons += [[daemon, "-f", environment["SLURM_CONF"]] for daemon in ("slurmctld", "slurmd")]
    with open(folder / "start.log", "w") as log:
        for daemon in daemons:
            subprocess.run(daemon, env=os.environ | environment, stdout=log, stderr=log, check=True)
    deadline = time.monotonic() + SECONDS_TO_START
    while _run(["sinfo", "--noheader", "--format=%T", "--partition=main"], environment) != "idle":
        if time.monotonic() > deadline:
            stop(folder)
            raise RuntimeError(f"SLURM did not start: see {folder}/slurmctld.log and {folder}/slurmd.log")
        time.sleep(0.2)
    return environment


def restart_controller(folder: Path) -> None:
    """Starts slurmctld again with its jobs: some settings, such as MaxArraySize, it takes up only so.

    Raises:
        RuntimeError: it did not come back in time.
    """
    environment = {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{os.environ['PATH']}{os.pathsep}/usr/sbin"}
    _end(folder, "slurmctld")
    subprocess.run(["slurmctld", "-f", environment["SLURM_CONF"]], env=os.environ | environment, check=True)
    deadline = time.monotonic() + SECONDS_TO_START
    while not _run(["sinfo", "--noheader", "--format=%T", "--partition=main"], environment).startswith("idle"):
        if time.monotonic() > deadline:
            raise RuntimeError(f"slurmctld did not come back: see {folder}/slurmctld.log")
        time.sleep(0.2)


def stop(folder: Path) -> None:
    """Cancels all jobs and ends the daemons that `start` started."""
    environment = {"SLURM_CONF": f"{folder}/slurm.conf"}
    _run(["scancel", "--full", "--signal=KILL", f"--user={os.geteuid()}"], environment)
    _run(["scancel", f"--user={os.geteuid()}"], environment)
    for name in ("slurmd", "slurmctld", "munged"):
        _end(folder, name)


def _end(folder: Path, daemon: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        os.kill(int((folder / f"{daemon}.pid").read_text()), signal.SIGTERM)
        for _ in range(100):
            if not (folder / f"{daemon}.pid").exists():
                break
            time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("start", "stop"):
        sys.exit(__doc__)
    if sys.argv[1] == "stop":
        stop(Path(sys.argv[2]).absolute())
    elif reason := why_not():
        sys.exit(reason)
    else:
        for variable, value in start(Path(sys.argv[2]).absolute()).items():
            print(f"export {variable}={value}")
