"""What earlier versions left is read as it is: `tests/kept` holds a store and records, as each version wrote them."""

import tarfile
from pathlib import Path

import pytest
from pydantic import TypeAdapter

import idp
from idp.records.collect import collect
from idp.records.record import RECORD, comparable, load
from idp.records.schema import Record

KEPT = sorted((Path(__file__).parent / "kept").glob("*.tar.xz"))
RUNS = {
    "idp": ("recovery=idp", "recovery.lengths=[3,5]"),
    "lora": ("recovery=lora",),
}
# The words of both runs, given in the folder that holds `outputs` and `text.txt`.
WORDS = ("model=tiny_llama", "model.device=cpu", "model.dtype=float32", "compressor=gptq3", "task=arc_easy")
WORDS += ("budget=smoke", "tracker=none", "corpus=local", "corpus.path=text.txt", "corpus.name=bridges")
WORDS += ("evaluation.perplexity=[corpus]", "baselines=false", "output=outputs")


@pytest.fixture(params=KEPT, ids=lambda file: file.name.removesuffix(".tar.xz"))
def left(request, tmp_path, monkeypatch):
    """The folder that a version left, as the current one."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("run", RUNS)
def test_its_products_are_reused_and_its_record_comes_again(left, compose, run):
    from idp import pipeline

    before = {file.parent.name: load(file) for file in left.glob(f"outputs/runs/*/{RECORD}")}
    assert len(before) == len(RUNS)
    record, place = pipeline.run(compose(*WORDS, *RUNS[run]))
    stages = record["idp"]["stages"]
    assert all(stage["reused"] for stage in stages.values()), {name: each["reused"] for name, each in stages.items()}
    old = before[place.parent.name]  # the same config has the same name
    assert comparable(old)["results"] == comparable(record)["results"]
    assert {name: stage["key"] for name, stage in old["idp"]["stages"].items()} == {
        name: stage["key"] for name, stage in stages.items()
    }


def test_its_records_are_read(left):
    found = collect(["outputs/runs"])
    assert not found.notes and len(found.models) == len(RUNS)
    for file in left.glob(f"outputs/runs/*/{RECORD}"):
        TypeAdapter(Record).validate_python(load(file))


def test_its_runs_are_opened(left):
    for folder in sorted(left.glob("outputs/runs/*")):
        assert idp.load(folder).generate(["The bridge"], 2)
