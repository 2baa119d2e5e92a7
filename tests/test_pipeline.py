"""Whole runs on a tiny model: every recovery, sharing through the store, and the same record after a kill."""

import json
import signal
import time
from pathlib import Path

import pytest

from idp.config import conf_dir
from idp.records.record import comparable
from idp.records.tables import run_summary
from idp.store import Store

from .conftest import record_of
from .processes import Process, python

TINY = ("model=tiny_llama", "budget=smoke", "tracker=none")
RECOVERIES = sorted(path.stem for path in (conf_dir() / "recovery").glob("*.yaml") if path.stem != "transfer")
# What one of the three models is lacks no half: those that choose among prompts, and those without any.
BANKS = {"idp": 3, "lora_idp": 3, "lowrank_experts": 3}
WEIGHTS_ALONE = ("lowrank", "lora", "lora_all", "masked_lora", "norms", "scales", "gated_prefix")
SIZES = {  # of two layers: numbers in and out of all linear layers, of q and v, of one token's keys or values, in norms
    "tiny_llama": (2 * (2 * 128 + 2 * 96 + 3 * 192), 2 * (128 + 96), 32, 5 * 64),
    "tiny_opt": (2 * (4 * 128 + 2 * 192), 2 * (128 + 128), 64, 5 * 2 * 64 + 2 * (5 * 64 + 128)),
    "gemma2": (2 * (2 * 128 + 2 * 96 + 3 * 192), 2 * (128 + 96), 32, 9 * 64),
}


@pytest.mark.parametrize("model", SIZES)
@pytest.mark.parametrize("recovery", RECOVERIES)
def test_every_recovery_runs_from_end_to_end(model, recovery, run_here, shared_store, model_folders):
    named = [f"model={model}"]
    if model == "gemma2":
        named = ["model=local", f"model.path={model_folders('gemma2')}", "model.name=gemma", "model.dtype=float32"]
    compressor = "sparsegpt50" if recovery == "masked_lora" else "gptq3"
    words = (f"compressor={compressor}", f"recovery={recovery}", "task=arc_easy", shared_store)
    record = run_here("budget=smoke", "tracker=none", *named, *words)
    about = record["idp"]
    assert about["row"] == ("compressed" if recovery == "none" else "repaired")
    assert set(about["baselines"]) == ({"dense"} if recovery == "none" else {"dense", "compressed"})
    assert 0 <= record["results"]["arc_easy"]["acc,none"] <= 1
    every, query_and_value, kv, norms = SIZES[model]
    weights = 65536 if model == "tiny_opt" else 73728
    added = {
        "none": 0,
        "hard_prompt": 0,
        "prompt": 25 * 64,
        "idp": 100 * 64,
        "ptune": 25 * 64,
        "prefix": 25 * 2 * 2 * kv,
        "lowrank": 32 * every,
        "lowrank_intactkv": 32 * every + 1 * 2 * 2 * kv,
        "lowrank_experts": 3 * 8 * every + 3 * 64,  # and the centre of each one's text
        "intactkv": 1 * 2 * 2 * kv,
        "cartridge": 26 * 2 * 2 * kv,
        "gated_prefix": 10 * 2 * 2 * kv + 2 * 4,
        "lora": 8 * query_and_value,
        "lora_all": 8 * every,
        "masked_lora": 8 * every,
        "norms": norms,
        "scales": weights // 64,
        "lora_idp": 8 * query_and_value + 100 * 64,
    }
    assert about["parameters"]["added"] == added[recovery]
    counts = about["selection"].get("arc_easy", {})
    assert sum(counts.values()) == (0 if recovery in ("none", *WEIGHTS_ALONE) else 8)
    assert len(counts) == {"none": 0, **BANKS}.get(recovery, recovery not in WEIGHTS_ALONE)
    assert f"{about['parameters']['added']:,} added" in run_summary(record)
    if recovery not in ("masked_lora", "norms", "scales"):
        assert about["weights"]["bits_per_weight"] == pytest.approx(3 + 19 / 64)


def test_the_record_has_what_tools_rely_on(idp_run, tmp_path):
    import pyarrow.parquet

    tasks = ("task=custom", "task.names=[arc_easy,sciq,webqs]", "corpus=embedded")
    done = idp_run(*TINY, "compressor=gptq4", "recovery=idp", "recovery.controls=false", *tasks)
    record = record_of(done)
    for key in ("results", "versions", "n-shot", "n-samples", "higher_is_better", "configs", "task_hashes"):
        assert "arc_easy" in record[key], key
    assert {"acc,none", "acc_stderr,none", "acc_norm,none"} <= set(record["results"]["arc_easy"])
    about = record["idp"]
    for stage in ("load", "compress", "recover", "measure"):
        assert set(about["stages"][stage]) - {"total_seconds"} == {"key", "reused", "seconds"}
    assert set(about["parameters"]) == {"model", "added", "trainable"}
    assert {"sparsity", "bits_per_weight", "packed_bytes", "effective_bytes"} <= set(about["weights"])
    assert about["budget"] == "smoke" and about["perplexity"]["embedded"] > 1
    assert about["data"]["webqs"]["stand_in"] == "nq_open" and "nq_open" in record["results"]
    assert (
        about["data"]["arc_easy"] | {"documents": 8, "source": "embedded", "split": "test"} == about["data"]["arc_easy"]
    )
    assert about["environment"]["versions"]["torch"] and about["config"]["recovery"]["lengths"] == [25, 25, 50]
    assert "stand-in: nq_open" in done.stdout
    assert "difference to compressed (percentage points, 95 % CI)" in done.stdout and "| recovery" not in done.stdout
    assert done.stdout.strip().splitlines()[-3] == about["conclusion"]
    assert "over 3 tasks (nq_open in place of webqs)" in about["conclusion"]
    pairs = [(each["after"], each["before"]) for each in about["comparisons"]]
    assert pairs == [("compressed", "dense"), ("repaired", "compressed"), ("repaired", "dense")]

    folder = Path(done.stdout.strip().splitlines()[-1].removeprefix("record: ")).parent
    samples = pyarrow.parquet.read_table(folder / "samples.parquet").to_pylist()
    assert len(samples) == 3 * 3 * 8
    repaired = [row for row in samples if row["model"] == "repaired" and row["task"] == "arc_easy"]
    mean = sum(row["metric:acc,none"] for row in repaired) / 8
    assert mean == pytest.approx(record["results"]["arc_easy"]["acc,none"])
    counts = [sum(row["prompt"] == i for row in repaired) for i in range(3)]
    assert counts == list(about["selection"]["arc_easy"].values())
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "done" and status["record"].endswith("record.json")
    assert (folder / "run.log").stat().st_size


def test_runs_share_what_they_have_in_common(run_here):
    base = (*TINY, "compressor=gptq3", "evaluation.perplexity=[]")
    first = run_here(*base, "recovery=prompt", "task=arc_easy")["idp"]["stages"]
    again = run_here(*base, "recovery=prompt", "task=arc_easy")["idp"]["stages"]
    assert not any(stage["reused"] for stage in first.values())
    assert all(stage["reused"] for stage in again.values())
    assert {name: stage["key"] for name, stage in first.items()} == {n: stage["key"] for n, stage in again.items()}

    other = run_here(*base, "recovery=hard_prompt", "task=arc_easy")["idp"]
    assert [other["stages"][stage]["reused"] for stage in ("load", "compress", "recover")] == [True, True, False]
    assert other["baselines"]["dense"]["stage"]["reused"] and other["baselines"]["compressed"]["stage"]["reused"]

    wider = run_here(*base, "recovery=prompt", "task=custom", "task.names=[arc_easy,piqa]")["idp"]
    assert wider["stages"]["recover"]["reused"] and not wider["stages"]["measure"]["reused"]


def test_a_repair_costs_what_is_beneath_it_wherever_that_was_made(run_here, tmp_path):
    base = (*TINY, "compressor=gptq3", "evaluation.perplexity=[]", "task=arc_easy", "baselines=false")
    apart = [run_here(*base, f"recovery={name}", f"store={tmp_path / 'apart'}") for name in ("lora", "lora_idp")]
    beneath, upper = (record["idp"]["stages"]["recover"] for record in apart)
    at_once = run_here(*base, "recovery=lora_idp", f"store={tmp_path / 'once'}")["idp"]["stages"]["recover"]
    stores = [Store(tmp_path / name) for name in ("apart", "once")]
    found = [store.get("recover", upper["key"]) for store in stores]
    assert at_once["key"] == upper["key"] and found[0].prerequisites.keys() == found[1].prerequisites.keys()
    assert f"recover/{beneath['key']}" in found[0].prerequisites
    for product, stage in zip(found, (upper, at_once), strict=True):
        assert stage["total_seconds"] >= stage["seconds"] + product.prerequisites[f"recover/{beneath['key']}"] - 0.002
        assert stage["seconds"] == round(product.seconds, 3)


def test_the_same_seed_gives_the_same_record_and_another_another(run_here, tmp_path):
    base = (*TINY, "compressor=gptq3", "recovery=prompt", "task=arc_easy", "baselines=false")
    one = run_here(*base, f"store={tmp_path / 'one'}")
    two = run_here(*base, f"store={tmp_path / 'two'}")
    three = run_here(*base, f"store={tmp_path / 'two'}", "seed=1")
    assert comparable(one)["results"] == comparable(two)["results"]
    assert one["idp"]["perplexity"] == two["idp"]["perplexity"] != three["idp"]["perplexity"]
    keys = [{stage: found["key"] for stage, found in each["idp"]["stages"].items()} for each in (two, three)]
    assert {stage for stage in keys[0] if keys[0][stage] != keys[1][stage]} == {"recover", "measure"}


def in_training(store):
    return any(store.glob("recover/*.part/checkpoint/*/state.json"))


def while_measuring(store):
    return len(list(store.glob("measure/*/manifest.json"))) >= 2


def test_killed_in_training_and_in_evaluation_it_ends_with_the_same_record(idp_run, bridges, tmp_path):
    overrides = [*TINY, *bridges, "compressor=gptq3", "recovery=idp", "task=custom", "task.names=[arc_easy,piqa]"]
    overrides += ["recovery.training.steps=40", "baselines=false"]
    undisturbed = record_of(idp_run(*overrides, f"store={tmp_path / 'undisturbed'}"))

    store = tmp_path / "killed"
    command = ["-m", "idp.run", *overrides, f"output={tmp_path / 'outputs'}", f"store={store}"]
    made: dict[str, int] = {}
    for moment in (in_training, while_measuring):
        process = Process(*command)
        while not moment(store):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert made.items() <= (made := finished(store)).items()
    done = python(*command)
    assert done.returncode == 0, done.stderr
    assert len(made) >= 5
    assert made.items() <= finished(store).items(), "a finished stage was repeated"
    one, other = comparable(undisturbed), comparable(record_of(done))
    assert one == other


def finished(store):
    """When each product was made, by its key."""
    return {path.parent.name: path.stat().st_mtime_ns for path in store.glob("*/*/manifest.json")}


def test_task_names_that_lm_eval_knows(run_here):
    record = run_here(*TINY, "task=custom", "task.names=[boolq,copa]", "evaluation.perplexity=[]", "compressor=none")
    assert set(record["results"]) == {"boolq", "copa"}


def test_two_evaluation_processes_give_the_same_record(run_here, spawned_forked):
    base = (*TINY, "compressor=none", "recovery=hard_prompt", "task=arc_easy", "evaluation.perplexity=[]")
    base += ("baselines=false",)
    one = run_here(*base, "evaluation.processes=1", "store=${output}/one")
    two = run_here(*base, "evaluation.processes=2", "store=${output}/two")
    assert one["results"] == two["results"] and one["idp"]["selection"] == two["idp"]["selection"]
