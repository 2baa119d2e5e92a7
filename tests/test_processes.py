"""A forked process is to a command what an interpreter of its own would be."""

import json
import os
import signal
import subprocess

import pytest

from .processes import Process, python

TELL = """
import json, os, sys
print(json.dumps([sys.argv, os.getcwd(), sys.path[0], sorted(os.environ.items()), __name__]), flush=True)
print("said", file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize(
    "end", ["", "sys.exit(3)", "sys.exit('why')", "1 / 0", "os.kill(os.getpid(), 9)", "os._exit(5)"]
)
def test_it_tells_and_ends_as_one_that_was_started(end, tmp_path):
    env, told = {**os.environ, "WANDB_NAME": "mine"}, []
    for cold in (False, True):
        done = python("-c", TELL + end, "a word", "b=1", env=env, cwd=tmp_path, cold=cold)
        errors = [line for line in done.stderr.splitlines() if not line.startswith(" ")]  # but for a traceback's places
        told.append([done.returncode, errors, *json.loads(done.stdout)])
    for forked, started in zip(*told, strict=True):
        assert forked == started


def test_a_module_is_run_as_main():
    forked, started = (python("-m", "idp.run", "--cfg", "job", "recovery=idp", cold=cold) for cold in (False, True))
    assert "lengths:" in started.stdout
    assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)


def test_it_can_be_killed_and_is_killed_when_its_time_is_up():
    process = Process("-c", "import time; print('begun', flush=True); time.sleep(600)")
    while not process.out:
        assert process.poll() is None
    process.kill()
    assert process.wait() == process.poll() == -signal.SIGKILL and process.out == "begun\n"
    with pytest.raises(subprocess.TimeoutExpired):
        python("-c", "import time; time.sleep(600)", timeout=0.1)
