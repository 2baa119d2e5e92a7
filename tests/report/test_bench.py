"""The copies that the report is timed on are a sweep that the report reads as one."""

from idp.bench.report import main, synthesise
from idp.report.collect import collect
from idp.report.outcomes import paired


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
