"""Launchers of this machine: a cell whose process is killed costs no other, and none has a limit that nobody set."""

import json
import os
import signal
import time

import hydra
import pytest
from hydra.utils import instantiate

from idp.composed import initialized
from idp.registry import register
from idp.sweep.__main__ import main

from ..processes import Process, python
from .test_sweeps import SMALL

local_launcher = pytest.importorskip("idp.sweep.local_launcher")
pytest.importorskip("idp.sweep.joblib_launcher")

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
    (length,) = {"recovery.length=2", "recovery.length=3", "recovery.length=4"} & {
        word
        for cell in json.loads((sweep / "sweep.json").read_text())["cells"]
        if cell["folder"].endswith(victim["name"])
        for word in cell["overrides"]
    }
    assert any(line.startswith(f"killed: {length} (") and line.endswith("; the other cells go on") for line in told)
    assert told[-1].startswith(f"error: 1 of 3 cells killed, perhaps for want of memory: {length} (")
    assert told[-1].endswith(f"to go on: python -m idp.sweep resume outputs/sweeps/{sweep.name}")
    assert "Traceback" not in controller.errors


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=[name for name, *_ in LAUNCHERS])
def test_ctrl_c_ends_the_cells_too(launcher, bridges, tmp_path, capsys):
    controller, _ = began(tmp_path, launcher, bridges, seconds=0.3)
    going_on = [status["pid"] for status in statuses(tmp_path, state="running")]
    controller.send_signal(signal.SIGINT)
    assert controller.wait(PATIENCE) == 130
    assert controller.errors.strip().splitlines()[-1] == "interrupted; the same command continues where it stopped"
    assert "Traceback" not in controller.errors
    for pid in going_on:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not set(states(tmp_path, capsys)) & {"running", "queued", "done"}


@pytest.mark.parametrize(
    ("words", "minutes", "times"),
    [([], local_launcher.NO_LIMIT, 0), (["timeout_min=90", "max_num_timeout=2"], 90, 2)],
)
def test_a_cell_of_submitit_local_has_the_limits_it_is_given(words, minutes, times, monkeypatch, tmp_path):
    class Executor:
        def __init__(self, folder, cluster, local_max_num_timeout):
            assert (folder, cluster, local_max_num_timeout) == (f"{tmp_path}/jobs", "local", times)

        def update_parameters(self, **given):
            assert given["timeout_min"] == minutes

        def map_array(self, *given):
            return []

    register([])
    given = ["hydra/launcher=submitit_local", *(f"hydra.launcher.{word}" for word in words)]
    with initialized():
        composed = hydra.compose("config", [*given, f"hydra.sweep.dir={tmp_path}"], return_hydra_config=True)
    monkeypatch.setattr("submitit.AutoExecutor", Executor)
    composed.hydra.launcher.submitit_folder = f"{tmp_path}/jobs"
    launcher = instantiate(composed.hydra.launcher)
    launcher.config = composed
    assert list(launcher.launch([], 0)) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["hydra/launcher=slurm"], "hydra/launcher=slurm is for sweeps, and this command would run here: add -m"),
        (["hydra/launcher=joblib"], "hydra/launcher=joblib is for sweeps, and this command would run here: add -m"),
        (["optuna=prompt"], "hydra/sweeper=optuna is for sweeps, and this command would search nothing: add -m"),
        (["hydra.job.chdir=true"], "hydra.job.chdir=true: a run's paths are relative to"),
        (["-m", "hydra.job.chdir=true"], "hydra.job.chdir=true: a run's paths are relative to"),
        (["-m", "hydra/launcher=slurm", "output=out-%j"], "output: {here}/out-%j/sweeps/"),
        (["-m", "hydra/launcher=submitit_local", "output=out-%t"], "output: {here}/out-%t/sweeps/"),
        (["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs=0: say how many"),
    ],
)
def test_what_would_be_done_otherwise_in_silence_is_refused(words, says, tmp_path):
    done = python("-m", "idp.run", *words, *SMALL, "compressor=none", "recovery=none", cwd=tmp_path)
    assert done.returncode == 1 and not done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {says.format(here=tmp_path)}")
    assert not (tmp_path / "outputs" / "runs").exists()
