"""Searches by Optuna and by W&B: what they vary exists, and what they minimise is what runs return."""

import json
from pathlib import Path

import hydra
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

from idp.config import conf_dir
from idp.registry import register

from .conftest import record_of

ROOT = Path(__file__).parent.parent
SMALL = ("model=tiny_llama", "task=arc_easy", "budget=smoke", "baselines=false", "evaluation.perplexity=[]")


def best_losses(records):
    return [
        sum(part["heldout_loss"] for part in record["idp"]["training"].values()) / len(record["idp"]["training"])
        for record in records
    ]


@pytest.mark.parametrize(("search", "recovery"), [("prompt", "recovery=prompt"), ("bank", "recovery=idp")])
def test_every_search_composes_and_varies_what_there_is(search, recovery, compose):
    register()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir().absolute()), version_base="1.3"):
        words = [f"optuna={search}", recovery]
        sweeper = hydra.compose("config", overrides=words, return_hydra_config=True).hydra.sweeper
    assert sweeper._target_.endswith("OptunaSweeper") and sweeper.direction == "minimize"
    ends = {"recovery.training.learning_rate": "0.1", "recovery.length": "50", "recovery.lengths": "[25,25,25,25]"}
    compose(recovery, *(f"{name}={ends[name]}" for name in sweeper.params))


def test_optuna_finds_the_lowest_heldout_loss_and_a_study_in_a_file_goes_on(idp_run, bridges, tmp_path):
    """Over learning rate, prompt length and the number of prompts."""
    pytest.importorskip("optuna", minversion="4.4")
    search = ("optuna=bank", "hydra.sweeper.n_trials=2")
    file = f"hydra.sweeper.storage={tmp_path / 'studies.log'}"
    banks = ("recovery=idp", "recovery/bank=specialists", "recovery.lengths=choice([3],[3,3],[5,5])")
    found = []
    for _ in range(2):
        study = ("hydra.sweeper.study_name=bank", file)
        idp_run("-m", *search, *study, *SMALL, *bridges, *banks, "recovery.controls=false", "tracker=none")
        written = sorted(tmp_path.glob("outputs/sweeps/*/optimization_results.yaml"), key=lambda at: at.stat().st_mtime)
        results = yaml.safe_load(written[-1].read_text())
        records = [json.loads(file.read_text()) for file in tmp_path.glob("outputs/runs/*/record.json")]
        assert results["best_value"] == pytest.approx(min(best_losses(records)))
        (best,) = (r for r in records if best_losses([r])[0] == pytest.approx(results["best_value"]))
        recovery = best["idp"]["config"]["recovery"]
        params = results["best_params"]
        assert recovery["training"]["learning_rate"] == pytest.approx(params["recovery.training.learning_rate"])
        assert str(recovery["lengths"]).replace(" ", "") == params["recovery.lengths"].replace(" ", "")
        found.append(len(records))
    assert found == [2, 4]


def test_the_wandb_sweep_gives_commands_that_run_and_a_metric_that_is_logged(idp_run, bridges, compose):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    from idp.records import metrics

    sweep = yaml.safe_load((ROOT / "docs" / "wandb_sweep.yaml").read_text())
    for end, place in (("min", 0), ("max", -1)):
        drawn = {
            key: {"value": space.get("value", space[end] if end in space else space.get("values", [None])[place])}
            for key, space in sweep["parameters"].items()
        }
        words = create_sweep_command_args({"args": drawn})["args_no_hyphens"]
        compose(*words)
    command = [word for part in sweep["command"] for word in (words if part == "${args_no_hyphens}" else [part])]
    assert command[:3] == ["python", "-m", "idp.run"]
    done = idp_run(*command[3:], *SMALL, *bridges, "tracker=none", "compressor=rtn3")
    assert sweep["metric"]["name"] in metrics.summary(record_of(done))
