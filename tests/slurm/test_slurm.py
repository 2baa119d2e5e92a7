"""Sweeps on a real SLURM: whatever happens to their cells and to whoever started them, they end as undisturbed ones."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from idp.records.record import comparable, heldout_loss

from ..processes import Process, python
from ..track.read_wandb import read
from . import cluster

HERE = Path(__file__).parent
PATIENCE = 600
BASE = ("model=tiny_llama", "budget=smoke", "compressor=rtn3", "recovery=prompt", "task=arc_easy", "baselines=false")
BASE += ("evaluation.perplexity=[]", "corpus=local", "corpus.name=bridges")
JOBS = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1")
JOBS += ("hydra.launcher.setup=['export OMP_NUM_THREADS=1']",)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(cluster.why_not() is not None, reason=str(cluster.why_not()))]


def on_cluster(name):
    """Tests of one name share a cluster, of which each worker starts its own: they wait beside one another."""
    return pytest.mark.xdist_group(f"slurm {name}")


def idp(module, *words, code=0, **options):
    done = python("-m", f"idp.{module}", *words, timeout=PATIENCE, **options)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def cells(**options):
    """Where the cells of the last sweep stand."""
    return json.loads(idp("sweep", "status", "--json", **options).stdout)


def states(found):
    return sorted(stands["state"] for stands in found)


def until(happens):
    """What `happens()` gives, once it is not empty."""
    deadline = time.monotonic() + PATIENCE
    while not (seen := happens()):
        assert time.monotonic() < deadline, f"it never happened; the runs: {statuses()}"
        time.sleep(0.05)
    return seen


def statuses(**wanted):
    """The status files that say what is wanted."""
    found = [json.loads(file.read_text()) for file in Path("outputs/runs").glob("*/status.json")]
    return [status for status in found if wanted.items() <= status.items()]


def made():
    """When each product was finished, by its key."""
    return {path.parent.name: path.stat().st_mtime_ns for path in Path("outputs/store").glob("*/*/manifest.json")}


def record(stands):
    return json.loads((Path(stands["cell"]["folder"]) / "record.json").read_text())


def same(one, other):
    return comparable(one) == comparable(other)


def partition(state):
    """Jobs of the main partition start only while it is `up`."""
    subprocess.run(["scontrol", "update", "PartitionName=main", f"State={state}"], check=True)


def preempt():
    """An urgent job takes the node for a moment."""
    command = ["sbatch", "--partition=urgent", "--exclusive", "--time=5", "--output=/dev/null", "--wrap=sleep 1"]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def pauses(monkeypatch):
    """`pauses(step=seconds, batch=seconds, until=file)`: jobs wait after each, so that they last without work."""
    return lambda **pauses: monkeypatch.setenv("PYTEST_PAUSES", json.dumps(pauses))


@on_cluster("cells")
def test_cells_that_raise_and_die_and_a_killed_controller_cost_no_other_cell(here, corpus, undisturbed, pauses):
    pauses(step=0.01, until=str(here / "go"))  # training lasts until this test has asked all that it asks meanwhile
    grid = ("recovery.length=2,3,4,5,2000,2001",)  # 2000 tokens do not fit in the window: two cells raise
    words = ("-m", *JOBS, *BASE, corpus, "tracker=none", "recovery.training.steps=30", *grid)

    controller = Process("-m", "idp.run", *words, "hydra.launcher.wait=true")
    until(lambda: [f for f in Path("outputs/sweeps").glob("*/submissions/*.json") if json.loads(f.read_text())["job"]])
    controller.kill()
    controller.wait()
    again = idp("run", *words)
    assert again.stdout.startswith("0 of 6 cells submitted, "), again.stdout
    assert len(cells()) == 6
    victim = until(lambda: statuses(state="running", stage="recover"))[0]
    os.kill(victim["pid"], signal.SIGKILL)
    (here / "go").touch()
    waited = idp("sweep", "wait", code=1)
    assert len(list(Path("outputs/sweeps").glob("*/submissions/*.json"))) == 1

    found = cells()
    assert states(found) == ["done"] * 3 + ["failed"] * 3
    assert "6 cells: 3 done, 3 failed" in waited.stdout
    remarks = [stands["remark"] for stands in found if stands["state"] == "failed"]
    assert sum("do not fit in the model's window" in remark for remark in remarks) == 2
    assert sum(remark.startswith("killed at stage recover") for remark in remarks) == 1
    accounts = {**os.environ, "PATH": f"{HERE / 'accounting'}{os.pathsep}{os.environ['PATH']}"}
    (killed,) = (stands for stands in cells(env=accounts) if stands["remark"].startswith("killed"))
    assert "; FAILED; " in killed["remark"] and killed["job"] == victim["job"]

    before = made()
    assert idp("sweep", "resume").stdout.startswith("3 of 6 cells submitted, 3 done")
    idp("sweep", "wait", code=1)
    found = cells()
    assert states(found) == ["done"] * 4 + ["failed"] * 2
    assert before.items() <= made().items(), "a finished stage was made again"
    assert len(list(Path("outputs/store/compress").iterdir())) == 1
    done = [stands for stands in found if stands["state"] == "done"]
    for stands in done:
        (own,) = (word for word in stands["cell"]["overrides"] if word.startswith("recovery.length="))
        assert same(record(stands), undisturbed("recovery.training.steps=30", own)), own

    wider = idp("run", *words[:-1], "recovery.length=2,3,4,5,6,7")  # has these four in common with the first
    assert wider.stdout.startswith("2 of 6 cells submitted, 4 done")
    idp("sweep", "wait")
    assert len([place for place in Path("outputs/sweeps").iterdir() if place.is_dir()]) == 2


@on_cluster("cells")
def test_a_killed_search_goes_on_and_each_trial_is_told_its_own_loss(here, corpus):
    optuna = pytest.importorskip("optuna", minversion="4.4")
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    grid = ("recovery.training.learning_rate=choice(0.01,0.03)", "recovery.length=choice(3,2000)")  # 2000 do not fit
    search = ("optuna=prompt", "hydra/sweeper/sampler=grid", "hydra.sweeper.n_jobs=2", "hydra.launcher.wait=true")
    words = ("-m", *search, *JOBS, *BASE, corpus, "tracker=none", *grid)
    controller = Process("-m", "idp.run", *words)
    until(lambda: statuses(state="running"))
    controller.kill()
    controller.wait()
    idp("run", *words)

    (journal,) = Path("outputs/sweeps").glob("*/study.log")
    trials = optuna.load_study(study_name="search", storage=JournalStorage(JournalFileBackend(str(journal)))).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE", "FAIL"]
    assert all("do not fit in the model's window" in trial.user_attrs["failed"] for trial in (trials[1], trials[3]))
    losses = {}
    for file in Path("outputs/runs").glob("*/record.json"):
        made = json.loads(file.read_text())
        losses[made["idp"]["config"]["recovery"]["training"]["learning_rate"]] = heldout_loss(made)
    assert {float(trial.params[grid[0].split("=")[0]]): trial.value for trial in (trials[0], trials[2])} == losses
    assert len(set(losses.values())) == 2


@on_cluster("preempted")
def test_preempted_in_training_and_in_evaluation_a_cell_goes_on(here, corpus, undisturbed, pauses):
    pauses(step=0.1, batch=0.5)
    work = ("recovery.training.steps=200", "recovery.training.checkpoint_every=100000", "task.documents=200")
    work += ("evaluation.batch_tokens=512",)
    partition("down")  # else the job may train while this test still asks where it stands
    idp("run", "-m", *JOBS, *BASE, corpus, *work, "tracker.mode=offline")
    assert states(cells()) == ["queued"]
    partition("up")

    def log(says):
        return lambda: [f for f in Path("outputs/runs").glob("*/run.log") if says in f.read_text()]

    until(lambda: list(Path("outputs/runs").glob("*/wandb/*/run-*.wandb")) and statuses(stage="recover"))
    time.sleep(1)
    preempt()
    until(lambda: statuses(restarts=1))
    before = made()
    journals = "outputs/store/measure/*.part/checkpoint/batches-*.jsonl"
    until(lambda: any(file.stat().st_size for file in Path().glob(journals)))
    preempt()
    until(lambda: statuses(restarts=2) or statuses(state="done"))
    assert statuses(restarts=2), "it had finished before it could be preempted"
    idp("sweep", "wait")
    (stands,) = cells()
    assert before.items() <= made().items(), "a finished stage was made again"
    (file,) = log("stopped at stage recover by SLURM")()
    assert re.search(r"training continues after step \d+", file.read_text())
    # SLURM takes its time to preempt: the signal may also fall between two tasks, where no batch is left to go on with.
    going_on = "finished batches found; going on with the others" in file.read_text()
    assert going_on or "stopped at stage measure by SLURM" in file.read_text()
    assert same(record(stands), undisturbed(*work))

    parts = [read(part) for part in sorted(file.parent.glob("wandb/offline-run-*/run-*.wandb"))]
    steps = [row["training_step"] for part in parts[:2] for row in part["history"] if "train/prompt_0/loss" in row]
    assert sorted(steps) == list(range(1, 201)), "steps of the history are lost, or logged twice"


@on_cluster("time limit")
def test_at_its_time_limit_a_cell_goes_on_in_the_next_job(here, corpus, undisturbed, pauses):
    limits = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=45")  # the signal comes after 15 to 45 s
    pauses(step=0.25)
    work = ("recovery.training.steps=240", "recovery.training.checkpoint_every=100000")
    idp("run", "-m", *JOBS, *limits, *BASE, corpus, *work, "tracker=none")
    expected = undisturbed(*work)
    idp("sweep", "wait")
    (stands,) = cells()
    (status,) = statuses(state="done")
    assert status["restarts"] >= 1, "it had finished before its time was over"
    assert same(record(stands), expected)


@on_cluster("time limit")
def test_what_slurm_refuses_is_said_in_a_line(here, corpus):
    words = ("-m", *JOBS, *BASE, corpus, "hydra.launcher.partition=nowhere")
    done = idp("run", *words, code=1)
    assert done.stderr.strip().splitlines()[-1].startswith("error: hydra/launcher=slurm: nothing was submitted: sbatch")
    assert states(cells()) == ["missing"]
