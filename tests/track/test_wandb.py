"""What reaches W&B is what the record says, and no trouble of W&B's costs a run."""

import os

import pytest

from idp.track import wandb as tracking
from idp.track.record import identity

from ..conftest import record_of
from .read_wandb import read

TINY = ("model=tiny_llama", "budget=smoke", "compressor=gptq3", "task=world_knowledge")


def test_an_offline_run_holds_config_curves_summary_and_tables(run_here, tmp_path):
    record = run_here(*TINY, "recovery=idp", "tracker.mode=offline")
    (file,) = tmp_path.glob("outputs/runs/*/wandb/offline-run-*/*.wandb")
    run = read(file)
    assert run["id"] == identity(record["idp"]["config"])[:12] == record["idp"]["name"].rsplit("-", 1)[1]
    assert run["group"] == "tiny_llama-gptq3" and {"tiny_llama", "gptq3", "idp", "smoke"} <= set(run["tags"])
    assert run["config"]["recovery"]["lengths"] == [25, 25, 50]
    assert run["exit_code"] == 0
    expected = tracking.summary(record)
    assert expected["arc_easy/acc"] == record["results"]["arc_easy"]["acc,none"]
    assert expected["params/added"] == 6400 and expected["params/model"] == record["idp"]["parameters"]["model"]
    assert expected["ppl/embedded"] == record["idp"]["perplexity"]["embedded"]
    for key, value in expected.items():
        assert run["summary"][key] == pytest.approx(value), key
    scores = [record["results"][task] for task in ("arc_easy", "arc_challenge", "sciq", "nq_open", "triviaqa")]
    mean = sum(next(v for k, v in s.items() if k.startswith(("acc,", "exact_match,"))) for s in scores) / 5
    assert expected["mean/acc"] == pytest.approx(mean)
    curve = [row for row in run["history"] if "train/prompt_1/loss" in row]
    assert [row["training_step"] for row in curve] == [1, 2, 3, 4, 5, 6]
    assert any("heldout/prompt_2/loss" in row for row in run["history"])
    logged = {key: value for row in run["history"] for key, value in row.items()}
    assert logged["results._type"] == logged["selection._type"] == "table-file"
    assert (logged["results.nrows"], logged["selection.nrows"]) == (5, 15)


def test_a_reused_repair_brings_its_curves_along(run_here, tmp_path):
    options = ("model=tiny_llama", "budget=smoke", "task=arc_easy", "baselines=false", "recovery=prompt")
    for _ in range(2):
        run_here(*options, "tracker.mode=offline")
    first, second = (read(file) for file in tmp_path.glob("outputs/runs/*/wandb/offline-run-*/*.wandb"))
    key = "train/prompt_0/loss"
    curves = [[row[key] for row in run["history"] if key in row] for run in (first, second)]
    assert len(curves[0]) == 6 and curves[0] == curves[1] and first["id"] == second["id"]


def test_an_unreachable_server_costs_a_warning(idp_run):
    environment = {**os.environ, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    environment.pop("WANDB_MODE")
    options = ("model=tiny_llama", "budget=smoke", "task=arc_easy", "baselines=false", "tracker.mode=online")
    done = idp_run(*options, env=environment)
    assert record_of(done)["results"]["arc_easy"]
    assert "W&B: " in done.stderr and "its record is written all the same" in done.stderr


@pytest.mark.parametrize("moment", ["init", "log", "finish"])
def test_errors_of_wandb_at_any_moment_are_warnings(moment, monkeypatch, tmp_path, caplog, compose):
    import wandb

    class Run:
        summary, define_metric = {}, staticmethod(lambda *_, **__: None)

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
    tracker = tracking.WandbTracker(
        compose().tracker, tmp_path, name="n", run_id="0" * 12, config={}, group="g", tags=[]
    )
    tracker.log_training({"step": 1, "loss": 2.0})
    tracker.fail()
    tracker.log_training({"step": 2, "loss": 2.0})
    assert caplog.text.count("W&B: ") == 1


def test_disabled_means_disabled(run_here, tmp_path):
    run_here("model=tiny_llama", "budget=smoke", "task=arc_easy", "baselines=false", "tracker=none")
    assert not list(tmp_path.glob("outputs/runs/*/wandb"))
