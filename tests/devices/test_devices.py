"""On a pretended accelerator of two devices everything works as on the CPU; see `checks`, which run in one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.devices.checks import CHECKS

ROOT = Path(__file__).parents[2]
# One worker runs them all: the process that pretends starts once.
pytestmark = [pytest.mark.xdist_group("devices"), pytest.mark.slow]


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    """What each check that was asked for ended with: None, or its traceback."""
    names = [item.callspec.params["name"] for item in request.session.items if item.path == request.path]
    file = tmp_path_factory.mktemp("devices") / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.devices.checks", str(file), *dict.fromkeys(names)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text())


@pytest.mark.parametrize("name", CHECKS)
def test_check(results, name):
    assert results[name] is None, results[name]
