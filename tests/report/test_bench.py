"""The copies that the report is timed on are a sweep that the report reads as one."""

import pytest

from benchmarks.report import main, opened, synthesise
from idp.records.collect import collect
from idp.records.outcomes import paired
from tests.report.test_page import CHROMIUM


def test_copies_differ_in_models_and_outcomes(real, tmp_path):
    synthesise(real[0], tmp_path / "runs", 12)
    found = collect([tmp_path / "runs"])
    assert len(found.records) == 12 and found.notes == []
    assert [sum(model.role == role for model in found.models) for role in ("dense", "compressed", "repaired")] == [
        1,
        2,
        12,
    ]
    scores = paired([model for model in found.models if model.role == "repaired"], "arc_easy")
    assert len({tuple(each) for each in scores}) > 1


def test_the_command_prints_what_it_took(real, capsys):
    main([f"record={real[0]}", "records=2", "page=2"])
    said = capsys.readouterr().out
    assert said.startswith("2 records: ") and "of memory, page of" in said
    if CHROMIUM:
        assert [line.split(":")[0].strip() for line in said.splitlines()[1:]] == [
            "opened in Chromium",
            "sort",
            "filter",
            "another axis",
        ]


@pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium on the PATH")
def test_a_page_that_never_answers_is_not_called_open(tmp_path):
    page = tmp_path / "index.html"
    page.write_text("<!doctype html><html data-ready><p>no controls</p></html>", encoding="utf-8")
    with pytest.raises(Exception, match="null"):
        opened(page)
