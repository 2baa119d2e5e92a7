"""The table that ends a run: differences with intervals, shares of real damage, documents, KL, groups."""

import pytest

from idp.records.differences import compared
from idp.records.tables import run_summary, run_table

from ..outcomes import hits, record

DENSE, COMPRESSED, REPAIRED = hits(90, 120), hits(90, 120, 2, 30), hits(90, 120, 6, 18)
THREE = {
    "dense": {"arc_easy": DENSE, "webqs": hits(10, 100)},
    "compressed": {"arc_easy": COMPRESSED, "webqs": hits(10, 100)},
    "repaired": {"arc_easy": REPAIRED, "webqs": hits(10, 100, turned_right=1)},
}


def rows_of(table):
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


def test_the_table_of_a_repair(tmp_path):
    found = record(tmp_path, THREE, stand_ins={"webqs": "nq_open"})
    rows = rows_of(run_table(found))
    assert list(rows) == ["arc_easy", "webqs (stand-in: nq_open)", "mean"]
    arc, test = rows["arc_easy"], compared(found, "repaired", "compressed")["tasks"]["arc_easy"]
    assert (arc["dense"], arc["compressed"], arc["repaired"]) == ("0.750", "0.517", "0.650")
    assert (
        arc["difference to compressed (percentage points, 95 % CI)"]
        == f"+13.3 ({100 * test['low']:+.1f} to {100 * test['high']:+.1f})"
    )
    share = test["damage_brought_back"]
    assert arc["damage brought back"] == f"57% ({share['low']:.0%} to {share['high']:.0%})"
    assert (arc["brought back"], arc["newly right"], arc["newly broken"]) == ("12 of 30", "16", "0")
    other = rows["webqs (stand-in: nq_open)"]
    assert (other["damage brought back"], other["newly right"]) == ("no damage beyond noise", "1")
    mean = rows["mean"]
    assert (mean["repaired"], mean["newly right"], mean["documents"]) == ("0.380", "17", "220")
    assert mean["difference to compressed (percentage points, 95 % CI)"].startswith("+7.2 (")


@pytest.mark.parametrize("models", [THREE, {row: THREE[row] for row in ("dense", "compressed")}])
def test_nothing_is_divided_by_dense(tmp_path, models):
    found = record(tmp_path, models, recovery="prompt" if "repaired" in models else "none")
    rows = rows_of(run_table(found))
    assert "recovery" not in rows["arc_easy"]
    assert "recovery" not in run_table(found) + run_summary(found)


def test_without_a_repair_the_damage_has_its_interval(tmp_path):
    found = record(tmp_path, {row: THREE[row] for row in ("dense", "compressed")}, recovery="none")
    rows, test = rows_of(run_table(found)), compared(found, "compressed", "dense")["tasks"]["arc_easy"]
    assert (
        rows["arc_easy"]["difference to dense (percentage points, 95 % CI)"]
        == f"-23.3 ({100 * test['low']:+.1f} to {100 * test['high']:+.1f})"
    )
    assert (rows["arc_easy"]["newly right"], rows["arc_easy"]["newly broken"]) == ("2", "30")
    assert rows["webqs"]["difference to dense (percentage points, 95 % CI)"] == "0 (nothing changed)"
    assert not {"damage brought back", "brought back"} & rows["arc_easy"].keys()


def test_a_single_model_is_compared_with_nothing_and_says_so(tmp_path):
    table = run_table(record(tmp_path, {"repaired": THREE["repaired"]}, baselines=False))
    assert "difference" not in table and table.endswith("(baselines=false).")
    table = run_table(record(tmp_path / "dense", {"dense": THREE["dense"]}, compressor="none", recovery="none"))
    assert table.endswith("Nothing was compressed or repaired, so there is nothing to compare.")


def test_an_older_record_keeps_its_scores(tmp_path):
    found = record(tmp_path, THREE)
    del found["idp"]["comparisons"]
    table = run_table(found)
    assert rows_of(table)["mean"]["repaired"] == "0.380" and "the same command adds them" in table


def test_where_lower_is_better_the_table_says_so_and_has_no_mean_of_scores(tmp_path):
    found = record(
        tmp_path, {"dense": THREE["dense"], "compressed": THREE["compressed"]}, lower=True, metric="bias,none"
    )
    rows = rows_of(run_table(found))
    assert rows["arc_easy"]["metric"] == "bias (lower is better)"
    assert rows["arc_easy"]["difference to dense (percentage points, 95 % CI)"].startswith("+23.3")
    assert rows["mean"]["dense"] == rows["mean"]["compressed"] == ""


def test_a_score_that_is_no_mean_is_named(tmp_path):
    found = record(tmp_path, THREE)
    for each in found["idp"]["comparisons"]:
        each["left_out"] = ["webqs"]
        del each["tasks"]["webqs"]
    table = run_table(found)
    assert rows_of(table)["webqs"]["difference to compressed (percentage points, 95 % CI)"] == ""
    assert "\n\nNo difference of webqs, whose score is no mean over documents" in table


def test_kl_and_groups_have_a_column_and_rows(tmp_path):
    found = record(tmp_path, THREE, groups={"world": ["arc_easy", "webqs"], "STEM": ["arc_easy"]})
    about = found["idp"]
    about["fidelity"] = {
        row: {
            "texts": {"c4": {"mean_kl": 2 * value}},
            "tasks": {"arc_easy": {"mean_kl": value}, "webqs": {"mean_kl": 3 * value}},
        }
        for row, value in (("compressed", 0.2), ("repaired", 0.1))
    }
    about["perplexity"] = {"c4": 21.5}
    for row in about["baselines"].values():
        row["perplexity"] = {"c4": None}  # infinity, as JSON has it
    about["groups"] = {
        "world": {row: {"score": 0.5, "tasks": ["arc_easy", "webqs"]} for row in THREE},
        "STEM": {row: {"score": 0.25, "tasks": ["arc_easy"]} for row in THREE},
    }
    rows = rows_of(run_table(found))
    kl = "KL to dense"
    assert (rows["arc_easy"][kl], rows["mean"][kl], rows["c4"][kl]) == (
        "0.200 / 0.100",
        "0.400 / 0.200",
        "0.400 / 0.200",
    )
    assert (rows["c4"]["dense"], rows["c4"]["repaired"]) == ("inf", "21.50")
    group, mean = rows["world (2 tasks)"], rows["mean"]
    difference = "difference to compressed (percentage points, 95 % CI)"
    assert group[difference] == mean[difference] and group["documents"] == "220" and group["repaired"] == "0.500"
    assert rows["STEM (1 tasks)"]["brought back"] == "12 of 30"
    about["fidelity"]["repaired"]["tasks"]["webqs"]["mean_kl"] = None  # as of a choice that peeks
    assert rows_of(run_table(found))["webqs"][kl] == "0.600 /"
    del about["fidelity"]["compressed"]["tasks"]["webqs"], about["fidelity"]["repaired"]["tasks"]["webqs"]
    assert rows_of(run_table(found))["mean"][kl] == ""
