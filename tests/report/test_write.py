"""The report's files, from the command line to the plots."""

import pytest

from idp.records.collect import collect
from idp.report.__main__ import main
from idp.report.plots import PLOTS, draw_all
from idp.report.view import views
from tests.report.conftest import HOSTILE, of_compressor

pytest.importorskip("matplotlib")


def test_the_command_writes_every_format(sweep, tmp_path, capsys):
    report = tmp_path / "report"
    main([str(sweep), f"output={report}"])
    said = capsys.readouterr().out
    assert "| tiny_llama | gptq3" in said and "unfinished: tiny_llama-gptq2-lora" in said
    assert f"wrote: {report / 'index.html'}" in said
    text = (report / "report.md").read_text()
    assert "| tiny_llama | rtn3" in text and "### Scores" in text and "### Costs" in text and "### Documents" in text
    for line in text.splitlines():
        if line.startswith("!["):
            image = report / line.split("](")[1].rstrip(")")
            assert image.stat().st_size > 5_000 and image.with_suffix(".svg").is_file()
    assert (report / "table.csv").read_text().count("\n") == 7
    assert "\\toprule" in (report / "table.tex").read_text() and "\\toprule" in (report / "paper.tex").read_text()
    assert (report / "results.parquet").stat().st_size > 5_000


def test_only_the_formats_that_are_asked_for(real, tmp_path, capsys):
    main([f"runs={real[0]}", f"output={tmp_path / 'report'}", "formats=csv,markdown"])
    written = ["records.csv", "report.md", "results.csv", "table.csv"]
    assert sorted(file.name for file in (tmp_path / "report").iterdir()) == written


def test_the_records_that_it_was_made_of(real, tmp_path):
    import csv
    import hashlib

    folder, record = real
    report = tmp_path / "report"
    main([f"runs={folder}", f"output={report}", "formats=csv"])
    with (report / "records.csv").open() as file:
        (line,) = csv.DictReader(file)
    place = folder / "record.json"
    assert line["sha256"] == hashlib.sha256(place.read_bytes()).hexdigest()
    assert (report / line["file"]).resolve() == place.resolve()
    about = record["idp"]
    assert line["run"] == about["name"] and line["seed"] == str(about["config"]["seed"])
    assert line["torch"] == about["environment"]["versions"]["torch"]
    assert line["instructions"] == about["environment"]["instructions"] and line["command"]


def test_runs_of_other_documents_stand_apart(vary, runs, tmp_path, capsys):
    def fewer(record):
        record["idp"]["data"]["arc_easy"]["documents"] -= 1

    vary("first")
    vary("second", fewer)
    main([str(runs), f"output={tmp_path / 'report'}", "formats=csv,markdown,latex"])
    assert "note: not compared" in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "report").glob("table*.csv")) == ["table-1.csv", "table-2.csv"]
    assert (tmp_path / "report" / "report.md").read_text().count("### Scores") == 2


def test_plots_without_data_say_what_they_want(real, tmp_path):
    (view,) = views(collect([real[0]]))
    drawn, left_out = draw_all(view, tmp_path)
    assert set(drawn) | set(left_out) == set(PLOTS)
    assert "Recovery against added parameters" in drawn and "Prompts selected" in drawn
    assert "latency=default" in left_out["Accuracy against latency"]
    assert "recovery=transfer" in left_out["Transfer"]


def test_plots_of_everything(vary, runs, tmp_path):
    import json

    def full(compressor, length):
        def change(record):
            of_compressor(compressor)(record)
            about = record["idp"]
            about["config"]["recovery"] |= {"length": length, "lengths": [length] * length}
            about["stages"]["recover"]["key"] = f"{compressor}{length}".ljust(64, "2")
            about["perplexity"] = {"text": 20.0 + length}
            about["perplexity_details"] = {"text": {"tokens": 8, "window": 4, "stderr": 0.1}}
            for number, baseline in enumerate(about["baselines"].values()):
                baseline["perplexity"] = {"text": 18.0 + 9 * number}
            shape = {"batch_size": 1, "input_tokens": 8}
            about["latency"] = {
                "rows": [
                    {**shape, "variant": name, "prefill": {"ratio": ratio}, "decode": {"ratio": ratio}}
                    for name, ratio in {"compressed": 1.0, "idp": 1 + length / 10}.items()
                ]
            }
            about["transfer"] = {"kind": "idp", "compressor": "gptq2", "corpus": "c4"} if length == 3 else None

        return change

    for compressor in ("gptq3", "rtn3"):
        for length in (1, 2, 3):
            place = vary(f"{compressor}-{length}", full(compressor, length))
            likeness = {"attention": {"cosine": [0.9, 0.8]}, "activation": {"cka": [1.0, 0.7]}}
            said = {
                "schema": 1,
                "inputs": {},
                "layers": [0, 1],
                "models": {"compressed": likeness, "repaired": likeness, "untrained_prompt": likeness},
            }
            (place / "analysis").mkdir()
            (place / "analysis" / "similarity.json").write_text(json.dumps(said))
    (view,) = views(collect([runs]))
    drawn, left_out = draw_all(view, tmp_path / "plots")
    assert set(left_out) == {"Weights of the layers"}  # those products were made up
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in drawn.values())


def test_text_in_the_page_is_escaped(sweep, tmp_path, capsys):
    main([str(sweep), f"output={tmp_path / 'report'}", "formats=page", f"title={HOSTILE}"])
    text = (tmp_path / "report" / "index.html").read_text()
    assert "<script>window.hacked" not in text and "<img" not in text
    assert "\\u003cscript>window.hacked" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["formats=html"], "html is none of"),
        (["output="], "give a value"),
        (["folder=x"], "options are"),
        (["nowhere"], "there is nothing here"),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message) as caught:
        main(words)
    assert "\n" not in str(caught.value)


def test_an_output_that_cannot_be_written(real, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="choose another folder with output="):
        main([str(real[0]), f"output={tmp_path / 'file' / 'report'}"])


def test_noise_does_not_fill_the_colours_of_the_transfer_matrix(record, runs):
    """Differences within noise stay pale: the strongest colour is two standard errors at least."""
    import numpy as np

    from idp.report.plots import transfer_matrix
    from tests.report.test_intervals import outcomes_of

    right = outcomes_of(broken=0.3, mended=0.0)

    def nearly(model, task):
        scores = right(model, task).copy()
        if model == "repaired":
            scores[:21] = 1 - scores[:21]
        return scores

    def moved(written):
        written["idp"]["transfer"] = {"kind": "prompt", "compressor": "gptq3", "corpus": "c4", "seed": 0, "key": "0"}

    record("moved", compressor="gptq4", recovery={"kind": "transfer", "from": "x"}, right=nearly, change=moved)
    (view,) = views(collect([runs]))
    found = view.compared[view.rows[2].id].mean
    (image,) = transfer_matrix(view).axes[0].images
    low, high = image.get_clim()
    assert found.low < 0 < found.high and -low == high > abs(found.difference)
    assert high >= 2 * (found.high - found.low) / 3.92 * 0.99
    assert np.isclose(float(image.get_array()[0][0]), found.difference)
