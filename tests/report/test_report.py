"""One table over many records, and one line where there is nothing to draw."""

import json

import pytest

from idp.errors import UserError
from idp.records.collect import collect
from idp.report.summary import sweep_table

TINY = ("model=tiny_llama", "task=arc_easy", "budget=smoke", "tracker=none", "baselines=false")


def test_a_line_for_every_run(run_here, shared_store, tmp_path):
    for compressor in ("rtn4", "magnitude50"):
        run_here(*TINY, f"compressor={compressor}", shared_store)
    found = collect([tmp_path / "outputs" / "runs"])
    records = found.records
    assert [record["idp"]["compressor"] for record in records] == ["magnitude50", "rtn4"]
    pruned, rounded = rows_of(found)
    assert (pruned["compressor"], pruned["sparsity"], pruned["bits"]) == ("magnitude50", "0.500", "16.00")
    assert float(pruned["effective MB"]) < float(pruned["packed MB"])
    assert rounded["bits"].startswith("4.")
    expected = records[1]["results"]["arc_easy"]["acc,none"]
    assert rounded["mean (tasks)"] == f"{expected:.3f} (1)"


def test_lines_are_told_apart_by_settings_and_seed(run_here, shared_store, tmp_path):
    tiny = (*TINY, "compressor=rtn3", "evaluation.perplexity=[]", shared_store)
    for length, seed in ((10, 0), (2, 1), (2, 0)):
        run_here(*tiny, "recovery=prompt", f"recovery.length={length}", f"seed={seed}")
    run_here(*tiny, "recovery=idp", "recovery/selector=oracle", "recovery.lengths=[2,3]")
    run_here(*tiny)
    said = [(row["recovery"], row["seed"]) for row in rows_of(collect([tmp_path / "outputs" / "runs"]))]
    assert said[0] == ("none", "") and len(said) == 5
    assert ("idp (oracle, upper bound: uses the labels)", "0") in said
    prompts = [row for row in said if row[0].startswith("prompt")]
    assert prompts == [("prompt length=2", "0"), ("prompt length=2", "1"), ("prompt length=10", "0")]


def test_a_line_has_the_difference_to_what_was_repaired(vary, runs):
    def differs(record):
        (step,) = (each for each in record["idp"]["comparisons"] if each["before"] == "compressed")
        step["mean"] |= {"difference": 0.0126, "low": -0.004, "high": 0.029}
        record["idp"]["perplexity"] = {"c4": 30.0}
        record["idp"]["fidelity"] = {"repaired": {"texts": {"c4": {"mean_kl": 0.25}}, "tasks": {}}}

    vary("first", differs)
    (row,) = rows_of(collect([runs]))
    assert (
        row["difference (95 % CI)"] == "+1.3 (-0.4 to +2.9) points to compressed" and row["c4 KL to dense"] == "0.250"
    )


def rows_of(found):
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in sweep_table(found).splitlines()]
    return [dict(zip(table[0], row, strict=True)) for row in table[2:]]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda place: None, "there is nothing here"),
        (lambda place: place.mkdir(), "no record here; `python -m idp.run .*` makes one"),
        (lambda place: (place.mkdir(), (place / "record.json").write_text('{"idp": {')), "not a record"),
        (
            lambda place: (
                place.mkdir(),
                (place / "record.json").write_text(json.dumps({"idp": {"schema_version": 999}})),
            ),
            "a record of schema 999",
        ),
    ],
)
def test_nothing_to_draw_is_one_line(made, message, tmp_path):
    place = tmp_path / "runs"
    made(place)
    with pytest.raises(UserError, match=message) as caught:
        collect([str(place)])
    assert "\n" not in str(caught.value)
