"""A SLURM of one node for all tests of this folder, and a folder to work in."""

import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from . import cluster

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def slurm():
    """The environment of a one-node cluster: two jobs at a time."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # munge wants it where all may enter, as tmp_path is not
    try:
        environment = cluster.start(folder)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        pytest.skip(f"SLURM cannot be started here: {error}")
    yield environment
    cluster.stop(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def here(slurm, tmp_path, monkeypatch):
    """A folder to work in, on the cluster."""
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", f"{HERE.parents[1]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def undisturbed(compose, corpus, tmp_path_factory):
    """`undisturbed(*overrides)`: the record of a cell that nobody disturbed, on one thread, as the jobs are."""
    import torch

    from idp.pipeline import run

    from .test_slurm import BASE

    root = tmp_path_factory.mktemp("undisturbed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more of them, sums are rounded otherwise
    yield lambda *overrides: run(compose(*BASE, corpus, *overrides, "tracker=none", f"output={root}"))[0]
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    draw = random.Random(0)
    words = ["the", "bridge", "river", "repairs", "old", "new", "stone", "over", "builds", "two", "seven", "and"]
    text = tmp_path_factory.mktemp("corpus") / "text.txt"
    text.write_text("\n\n".join(" ".join(draw.choices(words, k=60)) for _ in range(300)))
    return f"corpus.path={text}"
