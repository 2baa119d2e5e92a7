"""Launchers of this machine: a cell whose process is killed costs no other, and nothing ends one that was not asked for."""

import json
import os
import signal
import time

import pytest

from idp.sweep.__main__ import main

from ..processes import Process
from .test_sweeps import SMALL

LAUNCHERS = [("joblib", "hydra.launcher.n_jobs=2"), ("submitit_local",)]
PATIENCE = 120
CELLS = ("compressor=none", "recovery=prompt", "recovery.training.steps=60", "recovery.length=2,3,4")


def began(folder, launcher, bridges, *words, seconds=0.05):
    """A sweep that has cells in training, and their status files."""
    environment = {**os.environ, "PYTEST_PAUSES": json.dumps({"step": seconds})}
    name, *options = launcher
    sweep = ("-m", f"hydra/launcher={name}", *options, *SMALL, *CELLS, *bridges, *words)
    controller = Process("-m", "idp.run", *sweep, cwd=folder, env=environment)
    deadline = time.monotonic() + PATIENCE
    while not (found := statuses(folder, state="running", stage="recover")):
        assert controller.poll() is None and time.monotonic() < deadline, controller.out + controller.errors
        time.sleep(0.05)
    return controller, found


def statuses(folder, **wanted):
    found = [json.loads(file.read_text()) for file in (folder / "outputs" / "runs").glob("*/status.json")]
    return [status for status in found if wanted.items() <= status.items()]


def states(folder, capsys):
    (sweep,) = (folder / "outputs" / "sweeps").iterdir()
    main(["status", "--json", str(sweep)])
    return sorted(stands["state"] for stands in json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=[name for name, *_ in LAUNCHERS])
def test_a_cell_that_is_killed_is_named_and_the_others_end(launcher, bridges, tmp_path, capsys):
    controller, (victim, *_) = began(tmp_path, launcher, bridges)
    os.kill(victim["pid"], signal.SIGKILL)
    assert controller.wait(PATIENCE) == 1
    assert states(tmp_path, capsys) == ["done", "done", "failed"]
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    told = controller.errors.strip().splitlines()
    (length,) = {"recovery.length=2", "recovery.length=3", "recovery.length=4"} & set(
        word
        for cell in json.loads((sweep / "sweep.json").read_text())["cells"]
        if cell["folder"].endswith(victim["name"])
        for word in cell["overrides"]
    )
    assert any(line.startswith(f"killed: {length} (") and line.endswith("; the other cells go on") for line in told)
    assert told[-1].startswith(f"error: 1 of 3 cells killed, perhaps for want of memory: {length} (")
    assert told[-1].endswith(f"to go on: python -m idp.sweep resume outputs/sweeps/{sweep.name}")
    assert "Traceback" not in controller.errors


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=[name for name, *_ in LAUNCHERS])
def test_ctrl_c_ends_the_cells_too(launcher, bridges, tmp_path, capsys):
    controller, _ = began(tmp_path, launcher, bridges, seconds=0.3)
    going_on = [status["pid"] for status in statuses(tmp_path, state="running")]
    controller.send_signal(signal.SIGINT)
    assert controller.wait(PATIENCE) == 1
    assert controller.errors.strip().splitlines()[-1] == "interrupted; the same command continues where it stopped"
    assert "Traceback" not in controller.errors
    for pid in going_on:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not set(states(tmp_path, capsys)) & {"running", "queued", "done"}


def test_a_cell_of_submitit_local_has_no_limit_unless_it_is_given_one(monkeypatch, tmp_path):
    from submitit.local import local

    from hydra_plugins.idp_slurm import SubmititLocalLauncher
    from idp.composed import Composer
    from idp.registry import register

    register([])
    import hydra

    from idp.composed import initialized

    assert Composer  # composes without Hydra's own part
    with initialized():
        for words, minutes, times in (([], None, 0), (["timeout_min=90", "max_num_timeout=2"], 90, 2)):
            options = [f"hydra.launcher.{word}" for word in words]
            composed = hydra.compose(
                "config", ["hydra/launcher=submitit_local", *options], return_hydra_config=True
            ).hydra.launcher
            assert (composed.timeout_min, composed.max_num_timeout) == (minutes, times)
            launcher = SubmititLocalLauncher(
                **{key: value for key, value in composed.items() if key not in ("_target_", "submitit_folder")}
            )
            assert (launcher.timeout_min, launcher.max_num_timeout) == (minutes, times)
    assert local
