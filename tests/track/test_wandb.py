"""What reaches W&B is what the record says, and no trouble of W&B's costs a run."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time

import pytest
import wandb

from idp.records import metrics
from idp.records.record import identity
from idp.track import wandb as tracking
from idp.tracking import Followed, Tracking

from ..conftest import record_of
from ..processes import python
from .conftest import Stop, stop_at
from .read_wandb import read
from .receiver import Receiver

TINY = ("model=tiny_llama", "budget=smoke", "compressor=gptq3", "task=custom", "task.names=[arc_easy,sciq,webqs]")
QUICK = ("model=tiny_llama", "budget=smoke", "task=arc_easy", "baselines=false", "evaluation.perplexity=[]")


def logged(tmp_path):
    """What was logged offline under `tmp_path`, in order of time."""
    return [read(file) for file in sorted(tmp_path.glob("outputs/runs/*/wandb/offline-run-*/*.wandb"))]


def steps(run, key):
    return [row["training_step"] for row in run["history"] if key in row]


def test_an_offline_run_holds_config_curves_summary_and_tables(run_here, tmp_path):
    record = run_here(*TINY, "recovery=idp", "tracker.mode=offline", "tracker.study=first", "tracker.tags=[mine]")
    (run,) = logged(tmp_path)
    assert run["id"] == identity(record["idp"]["config"])[:12] == record["idp"]["name"].rsplit("-", 1)[1]
    assert (run["group"], run["job_type"]) == ("first", "idp")
    assert set(run["tags"]) == {"tiny_llama", "gptq3", "idp", "smoke", "first", "mine"}
    assert run["config"]["recovery"]["lengths"] == [25, 25, 50]
    assert run["config"]["labels"] | {"model": "tiny_llama", "compressor": "gptq3"} == run["config"]["labels"]
    assert run["exit_code"] == 0 and not run["preempted"]
    expected = metrics.summary(record)
    assert expected["arc_easy/acc"] == expected["score/arc_easy"] == record["results"]["arc_easy"]["acc,none"]
    assert expected["params/added"] == 6400 and expected["params/model"] == record["idp"]["parameters"]["model"]
    assert expected["ppl/bridges"] == record["idp"]["perplexity"]["bridges"]
    for key, value in expected.items():
        assert run["summary"][key] == pytest.approx(value), key
    scores = [record["results"][task] for task in ("arc_easy", "sciq", "nq_open")]
    mean = sum(next(v for k, v in s.items() if k.startswith(("acc,", "exact_match,"))) for s in scores) / 3
    assert expected["score/mean"] == pytest.approx(mean)
    assert expected["gain/mean"] == pytest.approx(mean - expected["compressed/score/mean"])
    assert (expected["score/mean_tasks"], expected["score/mean_stand_ins"]) == (3, 1)
    assert "score/nq_open_for_webqs" in expected and "score/webqs" not in expected
    assert expected["seconds/recover"] == record["idp"]["stages"]["recover"]["seconds"]
    losses = [part["heldout_loss"] for part in record["idp"]["training"].values()]
    assert expected["heldout/best_loss"] == pytest.approx(sum(losses) / 3)
    assert steps(run, "train/prompt_1/loss") == [1, 2, 3, 4, 5, 6]
    assert any("heldout/prompt_2/loss" in row for row in run["history"])
    found = {key: value for row in run["history"] for key, value in row.items()}
    assert found["results._type"] == found["selection._type"] == "table-file"
    assert (found["results.nrows"], found["selection.nrows"]) == (3, 9)


def test_a_reused_repair_brings_its_curves_along_and_a_repeated_run_adds_no_point(run_here, tmp_path):
    for task in ("arc_easy", "sciq", "sciq"):
        record = run_here(*QUICK, "recovery=lora", f"task={task}", "tracker.mode=offline")
    runs = {}
    for run in logged(tmp_path):
        runs.setdefault(run["id"], []).append(run)
    (first,), (other, again) = sorted(runs.values(), key=len)
    key = "train/lora/loss"
    curves = [[row[key] for row in run["history"] if key in row] for run in (first, other, again)]
    assert len(curves[0]) == 6 and curves[0] == curves[1] and curves[2] == []
    assert again["summary"].items() >= metrics.summary(record).items()


def test_a_stopped_run_goes_on_with_the_next_point(run_here, tmp_path, monkeypatch):
    options = (*QUICK, "recovery=idp", "recovery.lengths=[3,5]", "tracker.mode=offline")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(4, "prompt_1", patch)
        run_here(*options)
    assert run_here(*options)["results"]["arc_easy"]
    first, last = logged(tmp_path)
    assert first["id"] == last["id"]
    assert (first["exit_code"], first["preempted"]) == (1, True)
    assert (last["exit_code"], last["preempted"]) == (0, False)
    for run, points in ((first, ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4])), (last, ([], [5, 6]))):
        assert (steps(run, "train/prompt_0/loss"), steps(run, "train/prompt_1/loss")) == points


def test_a_killed_run_loses_no_point(run_here, bridges, tmp_path):
    """Nobody knows what W&B had written, so all points come again."""
    code = (
        "import os, signal; from idp.track.wandb import WandbTracker as T; log = T.log\n"
        "def log_and_die(self, row):\n"
        "    log(self, row)\n"
        "    if 'prompt_1/loss' in row and row['step'] == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "T.log = log_and_die\n"
        "from idp.run import main; main()"
    )
    options = (*QUICK, *bridges, "recovery=idp", "recovery.lengths=[3,5]", "tracker.mode=offline")
    done = python("-c", code, *options, f"output={tmp_path / 'outputs'}", env=own_environment())
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert run_here(*options)["results"]["arc_easy"]
    last = logged(tmp_path)[-1]
    assert steps(last, "train/prompt_0/loss") == steps(last, "train/prompt_1/loss") == [1, 2, 3, 4, 5, 6]


def own_environment():
    """This process's variables but for the one that would have a child share its W&B mode."""
    return {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}


def impatient(idp_overrides, tmp_path, environment):
    """A run of the command line that waits for W&B for no more than three seconds at a time."""
    code = "import idp.track.wandb as t; t.START_SECONDS = t.FINISH_SECONDS = 3.0\nfrom idp.run import main; main()"
    words = (*QUICK, *idp_overrides, f"output={tmp_path / 'outputs'}")
    done = python("-c", code, *words, env={**own_environment(), **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("W&B: ")]
    assert len(warnings) == 1 and "Traceback" not in done.stderr, done.stderr
    return record_of(done), warnings[0]


@pytest.mark.parametrize("whose", ["an ended process", "the caller"])
def test_w_and_b_of_the_process_that_started_a_run_is_not_the_run_s(idp_run, tmp_path, monkeypatch, whose):
    token = f"3-{os.getpid()}-unix-{tmp_path / 'nowhere.sock'}"
    if whose == "the caller":
        wandb.setup()
        token = os.environ[tracking.SERVICE]
    monkeypatch.setenv(tracking.SERVICE, token)  # as SLURM hands it to a job
    done = idp_run(*QUICK, "tracker.mode=offline")
    (run,) = logged(tmp_path)
    assert run["summary"]["score/mean"] == metrics.summary(record_of(done))["score/mean"]
    assert "W&B: " not in done.stdout + done.stderr


def test_an_unreachable_server_costs_a_warning_and_the_run_is_logged_offline(tmp_path):
    nobody = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    record, warning = impatient(["tracker.mode=online"], tmp_path, nobody)
    assert "logged offline: send it later with `wandb sync`" in warning
    (run,) = logged(tmp_path)
    assert run["exit_code"] == 0 and run["summary"]["score/mean"] == metrics.summary(record)["score/mean"]


def test_a_bad_key_costs_a_warning_and_the_run_is_logged_offline(tmp_path):
    with Receiver() as receiver:
        environment = receiver.environment(tmp_path, key="f" * 40)
        record, warning = impatient(["tracker.mode=auto"], tmp_path, environment)
        assert "logged offline" in warning and not receiver.runs
    (run,) = logged(tmp_path)
    assert run["summary"]["score/mean"] == metrics.summary(record)["score/mean"]


def test_a_server_that_goes_away_costs_a_warning(tmp_path):
    with Receiver() as receiver:

        def leave():
            while not receiver.runs:
                time.sleep(0.05)
            receiver.down = True

        threading.Thread(target=leave, daemon=True).start()
        record, warning = impatient(
            ["tracker.mode=online", "recovery=prompt"], tmp_path, receiver.environment(tmp_path)
        )
        assert "its record is written all the same" in warning
        assert record["results"]["arc_easy"]
        assert not list(tmp_path.glob(f"outputs/runs/*/wandb/{tracking.LOGGED}"))  # the next attempt sends all again


def test_an_online_run_arrives(tmp_path):
    with Receiver() as receiver:
        environment = {**own_environment(), **receiver.environment(tmp_path), "WANDB_MODE": "online"}
        command = ("-m", "idp.run", *QUICK, "recovery=prompt", f"output={tmp_path / 'outputs'}")
        for attempt in (1, 2):  # the second joins the first and adds no point
            done = python(*command, env=environment)
            assert done.returncode == 0 and "W&B: " not in done.stderr, done.stderr
            record = record_of(done)
            (run,) = receiver.runs.values()
            assert steps({"history": run.history}, "train/prompt_0/loss") == [1, 2, 3, 4, 5, 6]
            assert run.summary["score/mean"] == metrics.summary(record)["score/mean"]
            assert run.exit_codes == [0] * attempt
        assert run.table("results")[0]["task"] == "arc_easy"


def test_a_full_disk_costs_a_warning(run_here, tmp_path, monkeypatch, caplog, compose):
    from idp.pipeline import run

    config = compose(*QUICK, "recovery=prompt", "tracker.mode=offline", f"output={tmp_path / 'outputs'}")
    _, place = run(compose(*QUICK, "recovery=prompt", "tracker=none", f"output={tmp_path / 'outputs'}"))
    undisturbed = json.loads(place.read_text())["results"]
    folder = place.parent / "wandb"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs to be allowed")
    try:
        log = tracking.WandbTracker.log

        def fill_and_log(self, row):
            with open(folder / "filler", "ab", buffering=0) as filler, contextlib.suppress(OSError):
                filler.write(bytes(2**21))
            log(self, row)

        monkeypatch.setattr(tracking.WandbTracker, "log", fill_and_log)
        _, place = run(config)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
    assert json.loads(place.read_text())["results"] == undisturbed
    assert caplog.text.count("W&B: ") == 1 and "No space left on device" in caplog.text


@pytest.mark.parametrize("moment", ["init", "log", "finish"])
def test_errors_of_wandb_at_any_moment_are_warnings(moment, monkeypatch, tmp_path, caplog, compose):
    import wandb

    class Run:
        id, disabled, summary, define_metric = "0", False, {}, staticmethod(lambda *_, **__: None)

        def log(self, *_, **__):
            if moment == "log":
                raise OSError(28, "No space left on device")

        def finish(self, **_):
            if moment == "finish":
                raise RuntimeError("gone")

    def init(**_):
        if moment == "init":
            raise wandb.errors.CommError("no network")
        return Run()

    monkeypatch.setattr(wandb, "init", init)
    tracker = tracker_of(compose().tracker, tmp_path)
    tracker.log({"step": 1, "loss": 2.0})
    tracker.fail()
    tracker.log({"step": 2, "loss": 2.0})
    assert caplog.text.count("W&B: ") == 1


def tracker_of(options, folder, run_id="0" * 12):
    config = {
        "model": {"name": "m"},
        "recovery": {"kind": "prompt"},
        "budget": {"name": "smoke"},
        "tracker": {"study": None},
    }
    return Tracking(options, Followed("n", run_id, folder, config, metrics.labels(config, "rtn3")))


def test_long_words_are_no_trouble_and_runs_do_not_join_one_that_was_not_ended(compose, tmp_path, caplog):
    trackers = []
    for number in (1, 2):
        (tmp_path / f"outputs/runs/{number}").mkdir(parents=True)
        options = compose("tracker.mode=offline", f"tracker.tags=[{'long' * 40}]").tracker
        trackers.append(tracker_of(options, tmp_path / f"outputs/runs/{number}", f"{number}" * 12))
    for number, tracker in enumerate(trackers):
        tracker.log({"step": number, "loss": 2.0})
    for tracker in trackers:
        tracker.fail()
    first, second = logged(tmp_path)
    assert (steps(first, "train/loss"), steps(second, "train/loss")) == ([0], [1])
    assert max(map(len, first["tags"])) == tracking.LONGEST_TAG and "W&B: " not in caplog.text


def test_what_wandb_did_not_take_is_not_taken_for_delivered(compose, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = tracker_of(compose("tracker.mode=auto").tracker, tmp_path)
    tracker.log({"step": 1, "loss": 2.0})
    tracker.stop()
    assert tracker.tracker is None and not (tmp_path / "wandb" / tracking.LOGGED).exists()


def test_disabled_means_disabled(run_here, tmp_path):
    run_here(*QUICK, "tracker=none")
    assert not list(tmp_path.glob("outputs/runs/*/wandb"))
