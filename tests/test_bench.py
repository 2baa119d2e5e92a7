"""The benchmark runs and prints what it promises, here on random weights."""

import json

from .processes import python


def test_bench_on_a_tiny_shape(tmp_path):
    command = ["-m", "idp.bench", "--shape", "tiny", "--documents", "3", "--rounds", "1"]
    command += [
        "--tasks",
        "arc_easy",
        "lambada_openai",
        "--dtype",
        "float32",
        "--latency-rounds",
        "2",
        "--agreement-documents",
        "3",
    ]
    done = python(*command, "--output", tmp_path / "bench.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [row["task"] for row in found["scoring"]] == ["arc_easy", "lambada_openai"]
    for row in found["scoring"]:
        assert row["speed"] > 0 and row["tokens"]["none"] > 0 and 0 < row["share_of_matmul_rate"] < 2
    easy = found["scoring"][0]["tokens"]
    assert easy["none"] < easy["hflm"]
    (agreement,) = found["agreement"]
    assert agreement["same_choice"] == agreement["documents"] == 6 and agreement["largest_difference"] < 1e-3
    assert "speed against HFLM" in done.stdout and "prefill ratio" in done.stdout


def test_a_shape_needs_no_package_with_a_model(monkeypatch):
    from argparse import Namespace

    from benchmarks.speed import SHAPES, open_model
    from idp import models

    monkeypatch.setattr(models, "EMBEDDED_PACKAGE", "not_installed")
    loaded, again = (open_model(Namespace(shape="tiny", dtype="float32")) for _ in range(2))
    assert len(loaded.tokenizer("bytes")["input_ids"]) == 5
    assert loaded.model.config.hidden_size == SHAPES["tiny"]["hidden_size"]
    assert loaded.model.state_dict()["lm_head.weight"].equal(again.model.state_dict()["lm_head.weight"])
