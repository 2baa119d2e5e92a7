"""A bounded part of each fault test; `python -m tests.faults` does all of it."""

import os
from pathlib import Path

import pytest

from tests.processes import python

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(("part", "count"), [("kill", 5), ("configs", 40), ("store", 8), ("disk", 6), ("people", 6)])
def test_it_survives(part, count, tmp_path):
    # In a process of its own: it forks, which one that has used threads may not.
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = ("-m", "tests.faults", part, "--count", count, "--folder", tmp_path)
    done = python(*words, cwd=ROOT, env=alone, timeout=1800)
    if f"{part}: skipped" in done.stdout:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "**all**" in done.stdout
