"""`wandb sync` of a sweep's offline folders: what the server then has is what the records say."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from idp.records import metrics

from ..processes import python
from .receiver import Receiver

pytestmark = pytest.mark.xdist_group("swept")  # one sweep serves them all


@pytest.fixture(scope="module")
def received(swept, tmp_path_factory):
    """The server after the command of docs/wandb.md, and the records."""
    runs, records = swept
    with Receiver() as receiver:
        environment = {**os.environ, **receiver.environment(tmp_path_factory.mktemp("home"))}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        for shared in ("WANDB_MODE", "WANDB_SERVICE"):
            environment.pop(shared, None)
        command = "wandb sync outputs/runs/*/wandb".replace("outputs/runs", str(runs))
        done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not receiver.unknown, receiver.unknown
        yield receiver, records


def test_each_cell_is_one_run(received):
    receiver, records = received
    assert receiver.runs.keys() == records.keys()
    for name, run in receiver.runs.items():
        kind = records[name]["idp"]["config"]["recovery"]["kind"]
        attributes = run.attributes
        assert run.project == "demo" and attributes["jobType"] == kind
        assert attributes["groupName"] == ("tiny_llama-rtn3" if kind == "idp" else "cheap_repairs")
        assert {"tiny_llama", "rtn3", kind, "smoke"} <= set(attributes["tags"])
        assert ("cheap_repairs" in attributes["tags"]) == (kind != "idp")
        assert run.config["labels"]["compressor"] == "rtn3"
        assert run.config["compressor"] == records[name]["idp"]["config"]["compressor"]


def test_the_summary_is_the_record_metric_by_metric(received):
    receiver, records = received
    for name, record in records.items():
        expected = metrics.summary(record)
        assert {
            "score/arc_easy",
            "damage/mean_low",
            "score/nq_open_for_webqs",
            "seconds/compress",
            "peak_memory_bytes/compress",
            "ppl/bridges",
            "latency/decode_ms",
            "params/added",
        } <= expected.keys()
        assert ("gain/mean_low" in expected) == (record["idp"]["row"] == "repaired")
        for key, value in expected.items():
            assert receiver.runs[name].summary[key] == pytest.approx(value), (name, key)


def test_tables_are_the_records(received):
    receiver, records = received
    for name, record in records.items():
        run, about = receiver.runs[name], record["idp"]
        rows = run.table("results")
        assert [row["task"] for row in rows] == list(about["data"])
        for row in rows:
            runs = about["data"][row["task"]]["stand_in"] or row["task"]
            metric = f"{row['metric']},none"
            metric = next(key for key in record["results"][runs] if key.split(",")[0] == row["metric"])
            assert row[about["row"]] == pytest.approx(record["results"][runs][metric])
            difference = row[about["row"]] - row[row["against"]]
            assert row["difference"] == pytest.approx(difference) and row["low"] <= difference <= row["high"]
            assert row["dense"] == pytest.approx(about["baselines"]["dense"]["results"][runs][metric])
            assert row["documents"] == about["data"][row["task"]]["documents"]
        if about["selection"]:
            counted = {(row["task"], row["prompt"]): row["documents"] for row in run.table("selection")}
            assert counted == {(task, p): n for task, counts in about["selection"].items() for p, n in counts.items()}
        else:
            assert "selection" not in run.summary


def test_a_stopped_run_goes_on_where_it_was(received):
    receiver, records = received
    (name,) = (name for name, record in records.items() if record["idp"]["config"]["recovery"]["kind"] == "idp")
    run = receiver.runs[name]
    assert run.preempted and run.exit_codes == [1, 0]
    history = run.history
    steps = [row["_step"] for row in history]
    assert steps == sorted(set(steps))
    for part in ("prompt_0", "prompt_1"):
        curve = {row["training_step"]: row[f"train/{part}/loss"] for row in history if f"train/{part}/loss" in row}
        logged = [row["training_step"] for row in history if f"train/{part}/loss" in row]
        assert logged == [1, 2, 3, 4, 5, 6] and all(map(math.isfinite, curve.values()))
        best = min(row[f"heldout/{part}/loss"] for row in history if f"heldout/{part}/loss" in row)
        assert best == pytest.approx(records[name]["idp"]["training"][part]["heldout_loss"])


def test_artifacts_name_their_files_or_hold_them(received):
    receiver, records = received
    for name, record in records.items():
        kind, artifacts = record["idp"]["config"]["recovery"]["kind"], receiver.runs[name].artifacts
        wanted = {f"record-{name}"} | ({f"repair-{name}"} if kind != "none" else set())
        assert wanted <= artifacts.keys()
        assert all(artifacts[artifact]["committed"] for artifact in wanted)
        held = artifacts[f"record-{name}"]["files"]
        if kind == "idp":
            assert json.loads(held["record.json"]) == record
            assert "bank/prompt_0/adapter_model.safetensors" in artifacts[f"repair-{name}"]["files"]
        else:
            (entry,) = json.loads(held["wandb_manifest.json"])["contents"].values()
            assert entry["ref"].startswith("file://") and entry["ref"].endswith("/record.json")


def test_the_terminal_shows_what_was_logged(swept, tmp_path):
    runs, records = swept
    for name, record in records.items():
        (folder,) = runs.glob(f"*-{name}/wandb")
        done = python("-m", "wandb", "leet", "inspect", "--summary", "--json", folder, cwd=tmp_path)
        shown = json.loads(done.stdout)
        assert (shown["run_id"], shown["state"]) == (name, "finished")
        assert shown["summary"]["score/mean"] == pytest.approx(metrics.summary(record)["score/mean"])
