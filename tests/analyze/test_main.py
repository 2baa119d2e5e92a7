"""The command line on real small runs: what is written where, and what it says of bad words."""

import importlib
import json

import pytest

from idp.analyze.__main__ import main

IDP = ("compressor=gptq3", "recovery=idp", "recovery.lengths=[3,5]", "baselines=true")


@pytest.mark.parametrize("analysis", ["claims", "compare", "displaced"])
def test_analyses_of_runs(analysis, finished_run, tmp_path, capsys):
    folder, _ = finished_run(*IDP)
    main([analysis, f"runs={folder}", f"out={tmp_path}"])
    said = capsys.readouterr().out
    written = tmp_path / "analysis" / f"{analysis}.md"
    assert f"written: {written}" in said and written.read_text() in said.replace("\n\nwritten", "\nwritten")
    result = json.loads((tmp_path / "analysis" / f"{analysis}.json").read_text())
    schema = importlib.import_module(f"idp.analyze.{analysis}").SCHEMA
    assert result["schema"] == schema and result["settings"][0]["model"] == "tiny_llama"
    assert "gptq3 + idp (attention)" in said


def test_a_second_dense_model_is_one_more_run(finished_run, tmp_path):
    """Measured alone, in a folder of its own; another model, and so another setting, on the same documents."""
    folder, _ = finished_run(*IDP)
    own = ("model.name=second", "model.architecture.intermediate_size=96")
    second, record = finished_run("compressor=none", "recovery=none", *own)
    main(["displaced", f"runs={folder},{second}", f"out={tmp_path}"])
    result = json.loads((tmp_path / "analysis" / "displaced.json").read_text())
    [repair] = next(setting for setting in result["settings"] if setting["repairs"])["repairs"]
    control = repair["control"]
    assert control["model"] == "second" and control["documents"] == repair["documents"]
    assert control["accuracy"]["other"] == pytest.approx(record["results"]["arc_easy"]["acc,none"])
    assert control["like"] and 0 <= control["same"] <= 1
    assert "Held against a second dense model, second: " in (tmp_path / "analysis" / "displaced.md").read_text()


def test_the_best_prompt_of_a_real_bank(finished_run, tmp_path):
    """The chosen prompts' mean is that of the record's controls."""
    from idp.analyze.bank import best_and_chosen
    from idp.analyze.cells import cells_of, repairs
    from idp.records.collect import collect

    folder, record = finished_run(*IDP)
    collection = collect([folder])
    [cell] = repairs(cells_of(collection, collection.settings[0]))
    scores = best_and_chosen(cell)
    controls = record["idp"]["controls"]["tasks"]
    assert list(scores) == list(controls)
    for task, (best, chosen) in scores.items():
        assert best.shape == (1, controls[task]["documents"])
        assert best.mean() == pytest.approx(controls[task]["best"])
        assert chosen.mean() == pytest.approx(controls[task]["chosen"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["regimes"], "regimes: no such analysis; choose one of claims"),
        (["claims", "margin=none"], "margin=none: use a number"),
        (["claims", "margin=-1"], "margin=-1: give points"),
        (["claims", "run=x"], "run=x: options are runs="),
        (["compare", "runs=/nowhere/at/all"], "/nowhere/at/all: there is nothing here"),
        (["similarity"], "record= is missing"),
        (["similarity", "record=x", "documents=0"], "documents=0: must be at least 1"),
    ],
)
def test_mistakes_are_one_line(words, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_help(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(word in said for word in ("claims", "similarity", "record=", "margin="))
