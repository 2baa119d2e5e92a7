"""`| head -1`: a reader that has seen enough ends every command quietly, with the status of other programs then."""

import os
import subprocess
import sys

import pytest

from idp.commands import COMMANDS
from idp.ends import UNREAD
from idp.records.sweeps import Sweep, SweepCell
from tests.processes import stand_in

QUICK = ("model=tiny_llama", "task=arc_easy", "budget=smoke", "tracker=none", "evaluation.perplexity=[]")
# What each command prints of a finished run, by `{run}` and `{sweep}`; `bench` needs minutes for its own.
REAL = {
    "run": [*QUICK, "baselines=false", "{overrides}", "output={outputs}"],
    "plan": [*QUICK],
    "sweep": ["status", "{sweep}"],
    "report": ["{run}", "output={folder}/report", "formats=csv"],
    "compare": ["{run}", "out={folder}"],
    "analyze": ["claims", "{run}", "out={folder}"],
    "generate": ["record={run}", "prompt=The river", "max_new_tokens=2"],
    "export": ["record={run}", "out={folder}/export"],
    "fetch": [*QUICK],
    "store": ["list", "{store}"],
    "dashboard": ["{run}", "--dry-run", "{folder}/dashboard.json"],
}


def unread(program, *words, folder=None):
    """How a command ends whose standard output nobody reads, and what it says of that."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [program, "-m", "idp", *words]
    with open(writing, "wb") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, timeout=300, cwd=folder)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["help", "run"], *([name, "--help"] for name in COMMANDS)]
)
def test_help(words):
    assert unread(sys.executable, *words) == (UNREAD, "")


def test_every_command_is_here():
    assert REAL.keys() == COMMANDS.keys() - {"bench"}


@pytest.mark.parametrize("name", REAL)
def test_what_a_command_finds(name, finished_run, tmp_path, bridges):
    if name == "dashboard":
        pytest.importorskip("wandb_workspaces")
    run, record = finished_run("compressor=rtn4", "recovery=none")
    store = record["idp"]["config"]["store"]
    Sweep(tmp_path / "sweeps" / "mine", ["-m"], str(tmp_path), "basic", [SweepCell(["seed=0"], str(run))]).write()
    places = {"run": run, "store": store, "folder": tmp_path, "sweep": tmp_path / "sweeps" / "mine"}
    places |= {"outputs": run.parents[1], "overrides": "compressor=rtn4"}
    words = [word.format(**places) for word in REAL[name]]
    if name in ("run", "plan", "fetch"):
        words += [*bridges, *(["recovery=none"] if name == "run" else [])]
    status, said = unread(stand_in(), name, *words, folder=tmp_path)
    assert status == UNREAD, said
    assert "Traceback" not in said and "BrokenPipe" not in said and "error:" not in said
