"""The training benchmark runs, and both ways train the same prompt to the same losses; here on random weights."""

import json
import os

import pytest

from .processes import python


def test_both_ways_do_the_same_work(tmp_path):
    command = ["-m", "idp.bench.training", "--shape", "tiny", "--dtype", "float32", "--rounds", "2"]
    command += ["--steps", "2", "--sequence-length", "32", "--output", str(tmp_path / "training.json")]
    done = python(*command, cwd=tmp_path, env={**os.environ, "PYTEST_FORKS": "1"})
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "training.json").read_text())
    losses = [way["losses"] for way in found["ways"].values()]
    assert len(losses) == 3 and all(len(each) == 6 for each in losses)
    for other in losses[1:]:
        assert other[0] == pytest.approx(losses[0][0], abs=1e-4)
        assert other == pytest.approx(losses[0], abs=2e-3)  # Adam makes much of gradients that are next to nothing
    assert losses[0][0] != losses[0][-1]
    assert all(way["step_ms"] > 0 and way["peak_bytes"] >= 0 for way in found["ways"].values())
    assert set(found["speed"]) == set(found["memory"]) == {"PEFT", "PEFT, freed memory kept"}
    assert "ours is faster by" in done.stdout and "20 prompt tokens, batch 4 x 32" in done.stdout
