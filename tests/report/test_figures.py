"""Every figure with its bounds, read back from CSV and Parquet."""

import csv

import pytest
from pyarrow import parquet

from idp.records.collect import collect
from idp.report.__main__ import main
from idp.report.figures import FIELDS
from idp.report.view import views
from tests.report.test_paper import study  # noqa: F401


def test_csv_and_parquet_say_the_same_with_every_bound(study, tmp_path, capsys):  # noqa: F811
    main([str(study), f"output={tmp_path}", "formats=csv,parquet"])
    table = parquet.read_table(tmp_path / "results.parquet")
    lines = table.to_pylist()
    assert table.column_names == list(FIELDS) and str(table.schema.field("low").type) == "double"
    with (tmp_path / "results.csv").open() as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(lines) > 50
    for text, line in zip(read, lines, strict=True):
        for name, value in line.items():
            kind = type(value)
            assert text[name] == ("" if value is None else text[name]) and (value is None or kind(text[name]) == value)
    for line in lines:
        assert line["unit"], line
        if line["figure"] in ("score", "difference", "damage brought back"):
            assert line["low"] <= line["value"] <= line["high"] and line["n"] > 0 and line["n_of"] == "documents", line
    found = {(line["row"], line["figure"], line["of"], line["against"]): line for line in lines}
    (view,) = views(collect([study]))
    row = next(row for row in view.rows if row.name == "gptq3 + prompt")
    test = view.compared[row.id].tasks["piqa"]
    line = found["gptq3 + prompt", "difference", "piqa", "gptq3"]
    assert (line["value"], line["low"], line["high"], line["p"]) == (test.difference, test.low, test.high, test.p)
    assert (line["newly_right"], line["n"], line["runs"], line["unit"]) == (10, 40, 3, view.unit)
    assert ("gptq3 + prompt", "difference", "mean", "dense") in found
    text = found["gptq3 + lora", "perplexity", "wiki_text", None]
    assert text["low"] < text["value"] == 31.25 < text["high"] and (text["n"], text["n_of"]) == (4096, "tokens")
    kl = found["gptq3 + lora", "KL to dense", "wiki_text", None]
    assert kl["high"] - kl["low"] == pytest.approx(2 * 1.96 * 0.01, rel=1e-3) and kl["unit"] == "nats per token"
    assert found["gptq3", "packed size", None, None]["value"] == 400
