"""Records of every state become one structure, and what is left out is said."""

import json

import numpy as np
import pytest

from idp.errors import UserError
from idp.records.collect import collect
from idp.records.outcomes import outcomes, paired
from idp.records.sweeps import Sweep, SweepCell
from idp.report.nine_tasks import score_table
from idp.report.view import views


def another_repair(record):
    record["idp"]["stages"]["recover"]["key"] = "a" * 64
    record["idp"]["config"]["seed"] = 1


def another_compressor(record):
    another_repair(record)
    record["idp"]["compressor"] = "rtn3"
    record["idp"]["stages"]["compress"]["key"] = "b" * 64


def fewer_documents(record):
    record["idp"]["data"]["arc_easy"]["documents"] -= 1


def test_a_run_is_three_models_in_a_line(real):
    folder, record = real
    found = collect([folder])
    dense, compressed, repaired = found.models
    assert [model.role for model in found.models] == ["dense", "compressed", "repaired"]
    assert (dense.parent, compressed.parent, repaired.parent) == (None, dense.id, compressed.id)
    assert (dense.compressor, compressed.compressor, repaired.recovery) == ("none", "gptq3", "idp")
    assert dense.weights["packed_bytes"] == 4 * record["idp"]["parameters"]["model"]  # in float32
    assert repaired.parameters == record["idp"]["parameters"] and compressed.parameters["added"] == 0
    assert repaired.tasks["arc_easy"].value == record["results"]["arc_easy"]["acc,none"]
    assert dense.tasks["arc_easy"].value == record["idp"]["baselines"]["dense"]["results"]["arc_easy"]["acc,none"]
    assert found.notes == [] and found.unfinished == []


def test_runs_of_several_machines_are_said_to_be(vary, runs):
    def elsewhere(record):
        another_repair(record)
        record["idp"]["environment"] |= {"device": "CPU of another make", "instructions": "AVX512"}

    def long_ago(record):
        another_compressor(record)
        del record["idp"]["environment"]["instructions"]

    vary("first")
    vary("third", long_ago)
    assert not collect([runs]).notes
    vary("second", elsewhere)
    (note,) = collect([runs]).notes
    assert "runs of several machines: " in note and "CPU of another make, AVX512 (1)" in note


def test_the_same_model_of_several_runs_is_one(vary, runs):
    vary("first")
    vary("second", another_repair)
    vary("third", another_compressor)
    found = collect([runs])
    assert [(model.role, model.compressor) for model in found.models] == [
        ("dense", "none"),
        ("compressed", "gptq3"),
        ("repaired", "gptq3"),
        ("repaired", "gptq3"),
        ("compressed", "rtn3"),
        ("repaired", "rtn3"),
    ]
    dense, gptq, *repairs = found.models[:4]
    assert sorted(dense.runs) == ["first", "second", "third"] and sorted(gptq.runs) == ["first", "second"]
    assert {model.parent for model in repairs} == {gptq.id} and found.models[5].parent == found.models[4].id
    assert len(found.settings) == 1


def test_other_documents_are_another_setting(vary, runs):
    vary("first")
    vary("second", fewer_documents)
    found = collect([runs])
    assert len(found.settings) == 2 and len(found.models) == 6
    (note,) = found.notes
    assert "arc_easy" in note and "not compared" in note and "tables of their own" in note
    dense = [model for model in found.models if model.role == "dense"]
    assert paired(dense, "arc_easy") is None


def test_further_tasks_of_a_model_join_its_row(vary, runs):
    def other_task(record):
        another_repair(record)
        for place in (record, *record["idp"]["baselines"].values()):
            place["results"]["piqa"] = place["results"].pop("arc_easy")
        record["idp"]["data"]["piqa"] = record["idp"]["data"].pop("arc_easy")

    vary("first")
    vary("second", other_task)
    found = collect([runs])
    dense = found.models[0]
    assert len(found.settings) == 1 and sorted(dense.tasks) == ["arc_easy", "piqa"]
    assert [sorted(model.tasks) for model in found.models if model.role == "repaired"] == [["arc_easy"], ["piqa"]]


def test_outcomes_are_those_of_the_score(real):
    found = collect([real[0]])
    for model in found.models:
        score = model.tasks["arc_easy"]
        each = outcomes(score)
        assert len(each.scores) == score.documents and np.isclose(each.scores.mean(), score.value)
        assert (np.diff(each.doc_ids) > 0).all()


def test_outcomes_of_other_documents_are_not_paired(vary, runs):
    vary("first")
    vary("second", another_repair, outcomes=lambda table: table.filter(table["doc_id"].to_numpy() > 0))
    found = collect([runs])
    one, other = (model for model in found.models if model.role == "repaired")
    assert paired([one], "arc_easy") is not None
    assert paired([one, other], "arc_easy") is None


def test_what_cannot_be_used_is_said(vary, runs):
    vary("good")
    copy = vary("copy", lambda record: record["idp"].update(name="good"))
    (vary("half") / "record.json").write_text('{"idp": {')
    vary("later", lambda record: record["idp"].update(schema_version=999))
    vary("lacking", lambda record: record["idp"].pop("weights"))
    for name, state in (("going", "running"), ("broken", "failed")):
        status = {"name": name, "state": state, "stage": "recover", "error": None if state == "running" else "no room"}
        (runs / name).mkdir()
        (runs / name / "status.json").write_text(json.dumps(status))
    (runs / "torn").mkdir()
    (runs / "torn" / "status.json").write_text("{")
    found = collect([runs])
    assert [record["idp"]["name"] for record in found.records] == ["good"]
    said = "\n".join(found.notes)
    assert f"{runs / 'good' / 'record.json'}: the same as {copy / 'record.json'}" in said
    for part in ("half/record.json: not a record", "a record of schema 999", "lacking/record.json: half a record"):
        assert part in said
    assert [(run.name, run.state, run.error) for run in found.unfinished] == [
        ("broken", "failed", "no room"),
        ("going", "running", None),
        ("torn", "unknown", None),
    ]


def test_cells_of_a_sweep_that_were_never_started_are_missing(vary, runs, tmp_path):
    name = vary("first").name
    cells = [
        SweepCell(["seed=0"], str(runs / name)),
        SweepCell(["seed=1"], "/elsewhere/runs/tiny_llama-gptq3-lora-smoke-0123"),
    ]
    cells.append(SweepCell(["seed=-1"], None, "seed=-1: must be from 0"))
    for sweep in ("one", "another"):
        Sweep(runs.parent / "sweeps" / sweep, ["-m", "seed=0,1,-1"], str(tmp_path), "basic", cells).write()
    for place in (runs, runs.parent):
        assert [(run.name, run.state, run.error) for run in collect([place]).unfinished] == [
            ("tiny_llama-gptq3-lora-smoke-0123", "missing", None),
            ("seed=-1", "failed", "seed=-1: must be from 0"),
        ]
    (row,) = (row for row in score_table(views(collect([runs]))[0]).rows if "missing" in row["recovery"].text)
    assert (row["compressor"].text, row["recovery"].text) == ("gptq3", "lora seed=1 [missing]")
    assert "unfinished: tiny_llama-gptq3-lora-smoke-0123 (seed=1): missing" in [
        run.line for run in collect([runs]).unfinished
    ]


def test_copies_that_several_studies_hold_of_their_runs_are_one_line(vary, runs):
    def elsewhere(record):
        record["idp"]["name"] = "first"
        record["idp"]["config"] |= {"output": "outputs/another", "store": "another/store"}

    for name in ("first", "second", "third"):
        vary(name, elsewhere)
    (note,) = collect([runs]).notes
    assert ": the same as " in note and note.endswith(", and 1 more such copies")


def test_of_two_results_of_one_config_the_newer_stands(vary, runs):
    def other(record):
        record["idp"]["name"] = "first"
        record["results"]["arc_easy"]["acc,none"] = 0.125

    vary("first")
    vary("first_again", other)
    found = collect([runs])
    assert found.models[2].tasks["arc_easy"].value == 0.125
    assert "an older result of the same config" in found.notes[0]


def test_one_record_named_twice_is_one(real):
    folder, _ = real
    assert collect([folder, folder / "record.json"]).notes == []


def test_nothing_but_unfinished_runs(tmp_path):
    (tmp_path / "run").mkdir()
    status = {"name": "run", "state": "failed", "stage": "load", "error": "no such model"}
    (tmp_path / "run" / "status.json").write_text(json.dumps(status))
    with pytest.raises(UserError, match="no record here, but 1 unfinished: run \\(failed: no such model\\)"):
        collect([tmp_path])
