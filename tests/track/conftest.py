"""A sweep on the tiny model whose runs W&B logged offline, one of them stopped and continued."""

import json
import os

import pytest

from ..processes import python

SMALL = ("model=tiny_llama", "task=custom", "task.names=[arc_easy,webqs]", "budget=smoke", "tracker.mode=offline")
SMALL += ("tracker.project=demo",)
LATENCY = ("latency=default", "latency.batch_sizes=[1]", "latency.input_tokens=[8]", "latency.new_tokens=2")
SWEEP = ("compressor=rtn3", "recovery=none,prompt,lora", "tracker.study=cheap_repairs", "tracker.artifacts=reference")
STOPPED = ("compressor=rtn3", "recovery=idp", "recovery.lengths=[3,5]", "tracker.artifacts=upload")


class Stop(BaseException):
    """What a signal becomes."""


def stop_at(step, part, monkeypatch):
    """Makes the next run stop when it has logged a step of a part's training."""
    from idp.track.wandb import WandbTracker

    log = WandbTracker.log

    def log_and_stop(self, row):
        log(self, row)
        if row["step"] == step and f"{part}/loss" in row:
            raise Stop

    monkeypatch.setattr(WandbTracker, "log", log_and_stop)


@pytest.fixture(scope="session")
def swept(compose, bridges, tmp_path_factory):
    """The folder of runs, and the records by run id; the last cell was stopped in training and started again."""
    from idp.pipeline import run

    root = tmp_path_factory.mktemp("swept")
    small = (*SMALL, *bridges, *LATENCY, "latency.rounds=2", "latency.warmup=0", f"output={root}")
    home = root / "home"
    os.environ |= {name: str(home / name.lower()) for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR")}
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    done = python("-m", "idp.run", "-m", *small, *SWEEP, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    stopped = compose(*small, *STOPPED)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        stop_at(3, "prompt_1", patch)
        run(stopped)
    run(stopped)
    records = [json.loads(file.read_text()) for file in root.glob("runs/*/record.json")]
    assert len(records) == 4
    return root / "runs", {record["idp"]["name"].rsplit("-", 1)[1]: record for record in records}
