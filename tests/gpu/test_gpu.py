"""The command for a real GPU runs: all its steps on a CPU, and its way with steps that fail, die or hang."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from ..processes import stand_in
from . import faulty
from . import work as working
from .bench import Bench
from .check import Check
from .lines import table
from .packages import ROOT
from .steps import ORDER, Step, find
from .steps.latency import sharing_weights


@pytest.fixture
def check(tmp_path, monkeypatch):
    """`check(steps, apart, seconds)`: the check after those steps; its JSON had each line at once."""
    monkeypatch.setattr(sys, "executable", str(stand_in()))  # of the processes that it starts

    def run(steps, apart, seconds=600.0, device="cpu"):
        output = tmp_path / "gpu.json"
        bench = Bench(device, "tiny", tmp_path / "made")
        bench.folder.mkdir()

        def tell(line):
            assert json.loads(output.read_text())["lines"][-1] == json.loads(json.dumps(line))

        made = Check(bench, seconds, output, tell)
        made.run(steps, apart)
        assert json.loads(output.read_text())["finished"]
        return made

    return run


def test_all_steps_on_a_cpu(check):
    """What only a card can tell is skipped by name; all else runs, and finds nothing wrong."""
    made = check([find(name) for name in ORDER], apart=False)
    lines = made.found["lines"]
    assert [line for line in lines if line["verdict"] not in ("ok", "skipped")] == []
    assert [line["name"] for line in lines if line["verdict"] == "skipped"] == ["card"]
    assert list(dict.fromkeys(line["step"] for line in lines)) == list(ORDER)
    figures = {line["name"]: line["values"] for line in lines}
    assert figures["sparsegpt50"]["sparsity"] == pytest.approx(0.5, abs=0.02)
    assert figures["joint"]["sparsity"] > 0.49
    assert figures["60 tokens"]["nats_apart"] < 1e-4
    ways = {"compressed", "prompt", "idp", "lora", "lora_merged"}
    assert figures["batch 8, decode"]["milliseconds"].keys() == ways
    assert all(line["figure"] in table(made.found) for line in lines)
    assert not made.failed


def test_what_fails_dies_or_hangs_leaves_the_rest(check):
    later = dataclasses.replace(faulty.STEP, seconds=0)
    made = check([faulty.STEP, later], apart=True, seconds=20)
    lines = made.found["lines"]
    first, second = lines[: len(lines) - 6], lines[-6:]
    told = [(line["name"], line["verdict"]) for line in first]
    assert told == [
        ("measures", "ok"),
        ("raises", "FAILED"),
        ("dies", "ok"),
        ("dies", "FAILED"),
        ("measures again", "ok"),
        ("hangs", "ok"),
        ("hangs", "FAILED"),
        ("comes too late", "skipped"),
    ]
    assert first[1]["reason"].startswith("ValueError: a wrong shape (gpu/faulty.py:")
    assert "was ended by SIGSEGV" in first[3]["reason"]
    assert "no end after" in first[6]["reason"]
    assert first[0]["figure"] == first[2]["figure"] != first[4]["figure"] == first[5]["figure"]  # processes
    assert {line["verdict"] for line in second} == {"skipped"}
    assert made.failed and made.found["seconds"] < 60


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_so_and_ends(check):
    steps = [find(name) for name in ("versions", "scoring", "latency")]
    lines = check(steps, apart=True, device="cuda").found["lines"]
    card, others = lines[0], [line for line in lines if line["step"] != "versions"]
    assert (card["name"], card["verdict"]) == ("card", "FAILED") and "CUDA" in card["reason"]
    assert [(line["step"], line["verdict"]) for line in others] == [("scoring", "skipped"), ("latency", "skipped")]


def test_a_step_that_cannot_start_fails_once(check):
    step = Step("tests.gpu.no_such_step", 1, faulty.parts, faulty.run, ())
    (line,) = check([step], apart=True).found["lines"]
    assert (line["name"], line["verdict"]) == ("its start", "FAILED")
    assert "No module named 'tests.gpu.no_such_step'" in line["reason"]


def test_a_lost_device_leaves_the_other_parts_to_another_process(monkeypatch, tmp_path):
    said = []

    def lost(_):
        raise working.DeviceLost

    monkeypatch.setattr(working, "_tidy", lost)
    with pytest.raises(working.DeviceLost):
        working.work(faulty.STEP, ["raises", "measures"], Bench("cpu", "tiny", tmp_path), said.append)
    assert [list(each) for each in said] == [["begin"], ["line"], ["end"]]


def test_models_share_their_weights(open_tiny):
    model = open_tiny("llama").model
    other = sharing_weights(model)
    assert other is not model and other.model.layers[0] is not model.model.layers[0]
    mine, others = dict(model.named_parameters()), dict(other.named_parameters())
    assert mine.keys() == others.keys() and all(mine[name] is others[name] for name in mine)


def test_make_takes_the_wheels_that_are_there(tmp_path):
    """From their folder alone, into a folder of the check's own."""
    words = ["GPU_PYTHON=python3.12", "WHEELS=Makefile", f"GPU_SITE={tmp_path}/site-packages", "GPU=versions"]
    done = subprocess.run(["make", "--dry-run", "gpu", *words], capture_output=True, text=True, cwd=ROOT)
    commands = done.stdout.splitlines()
    assert f"python3.12 -m pip install --quiet --no-index --no-deps --no-compile --target {tmp_path}" in commands[1]
    assert commands[-1].endswith("python3.12 -m tests.gpu versions")
    assert f"PYTHONPATH={tmp_path}/site-packages" in commands[-1]


def test_make_needs_no_wheels_where_all_is_installed():
    done = subprocess.run(
        ["make", "--dry-run", "gpu", "GPU_PYTHON=python", "WHEELS="], capture_output=True, text=True, cwd=ROOT
    )
    assert "pip" not in done.stdout and done.stdout.strip().endswith("python -m tests.gpu")
