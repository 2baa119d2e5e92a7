"""Sweeps on a real SLURM that has short arrays, that colleagues look at, and whose folders take several commands."""

import json
import subprocess
from pathlib import Path

import pytest

from . import cluster
from .test_slurm import BASE, JOBS, cells, idp, on_cluster, partition, pytestmark, states  # noqa: F401


@pytest.fixture
def waiting(here):
    """Jobs wait, and are cancelled in the end."""
    partition("down")
    yield
    subprocess.run(["scancel", "--partition=main"], check=True)
    partition("up")


@pytest.fixture
def short_arrays(here, slurm):
    """An array may have two jobs. To come before `waiting`: when SLURM reads its settings, it opens partitions."""
    file = Path(slurm["SLURM_CONF"])
    before = file.read_text()
    file.write_text(f"{before}MaxArraySize=2\n")
    cluster.restart_controller(file.parent)  # told to read its settings, it shows the new size and keeps to the old one
    yield
    file.write_text(before)
    cluster.restart_controller(file.parent)


def submissions():
    return [json.loads(file.read_text()) for file in Path("outputs/sweeps").glob("*/submissions/*.json")]


@on_cluster("cells")
def test_short_arrays_take_all_cells_and_whoever_asks_sees_their_jobs(short_arrays, waiting, corpus, monkeypatch):
    done = idp("run", "-m", *JOBS, *BASE, corpus, "tracker=none", "seed=0,1,2,3,4")
    assert done.stdout.startswith("5 of 5 cells submitted")
    assert sorted(len(made["folders"]) for made in submissions()) == [1, 2, 2]
    monkeypatch.setenv("LOGNAME", "nobody")
    assert states(cells()) == ["queued"] * 5
    assert "nothing is missing, and nothing failed" in idp("sweep", "resume").stdout


@on_cluster("cells")
def test_resume_submits_the_cells_of_every_command_of_a_folder(waiting, corpus):
    folder = "hydra.sweep.dir=outputs/sweeps/both"
    for seeds in ("0,1", "2"):
        idp("run", "-m", *JOBS, *BASE, corpus, "tracker=none", folder, f"seed={seeds}")
    assert states(cells()) == ["queued"] * 3
    subprocess.run(["scancel", "--partition=main"], check=True)
    assert states(cells()) == ["failed"] * 3
    said = idp("sweep", "resume", "hydra.launcher.mem_gb=2").stdout
    assert "2 of 2 cells submitted" in said and "1 of 1 cells submitted" in said
    assert states(cells()) == ["queued"] * 3
    (sweep,) = Path("outputs/sweeps").glob("*/sweep.json")
    assert len(json.loads(sweep.read_text())["earlier"]) == 1, "a command that was given again is the same"
