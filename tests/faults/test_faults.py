"""A bounded part of each fault test; `python -m tests.faults` does all of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(("part", "count"), [("kill", 5), ("configs", 40), ("store", 8), ("disk", 6)])
def test_it_survives(part, count, tmp_path):
    # In a process of its own: it forks, which one that has used threads may not.
    command = [sys.executable, "-m", "tests.faults", part, "--count", str(count), "--folder", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    if f"{part}: skipped" in done.stdout:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "**all**" in done.stdout
