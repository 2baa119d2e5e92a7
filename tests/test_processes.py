"""A forked process is to a command what an interpreter of its own would be."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .processes import Process, python, stand_in

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
    while not process.out.endswith("\n"):
        assert process.poll() is None
    process.kill()
    assert process.wait() == process.poll() == -signal.SIGKILL and process.out == "begun\n"
    with pytest.raises(subprocess.TimeoutExpired):
        python("-c", "import time; time.sleep(600)", timeout=0.1)


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "os.kill(os.getpid(), 9)"])
def test_what_other_programs_start_is_a_fork_too(end, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "2"}
    (tmp_path / "mine.py").write_text("import json, os, sys\n")
    tell = "from mine import *; print(json.dumps([sys.argv, os.getcwd(), __name__, input()]), flush=True)"
    told = []
    for program in (sys.executable, stand_in()):
        reading, writing = os.pipe()
        command = [program, "-u", "-c", f"{tell}; os.write({writing}, b'passed on'); {end}", "a word"]
        files = {"pass_fds": [writing], "capture_output": True, "text": True, "input": "typed\n"}
        done = subprocess.run(command, env=environment, cwd=tmp_path, **files)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            told.append((done.returncode, json.loads(done.stdout), done.stderr, pipe.read()))
    assert told[0] == told[1]
    threads = [stand_in(), "-c", "import torch; print(torch.get_num_threads())"]
    assert subprocess.run(threads, env=environment, capture_output=True, text=True).stdout == "2\n"


def test_signals_reach_the_fork_and_it_does_not_outlive_what_stands_in_for_it(tmp_path):
    code = (
        "import os, signal, time; signal.signal(signal.SIGUSR2, lambda *_: print('heard', flush=True));"
        "print(os.getpid(), flush=True); time.sleep(0.1); [time.sleep(0.1) for _ in range(6000)]"
    )
    process = subprocess.Popen([stand_in(), "-u", "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    process.send_signal(signal.SIGUSR2)
    assert process.stdout.readline() == "heard\n"
    process.kill()
    process.wait()
    for _ in range(100):
        if not os.path.exists(f"/proc/{pid}"):
            break
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{pid}")


def square(number):
    return number * number, "torch" in sys.modules


def test_processes_that_a_fork_spawns_are_forks_too(tmp_path):
    code = (
        "import concurrent.futures as f, multiprocessing as m, joblib; from tests.test_processes import square\n"
        "pool = f.ProcessPoolExecutor(2, mp_context=m.get_context('spawn')); print(list(pool.map(square, [2, 3])))\n"
        "print(joblib.Parallel(2)(joblib.delayed(square)(n) for n in (4, 5)))\n"
    )
    done = python("-c", code, cwd=Path(__file__).parents[1])
    assert done.stdout.splitlines() == ["[(4, True), (9, True)]", "[(16, True), (25, True)]"], done.stderr
