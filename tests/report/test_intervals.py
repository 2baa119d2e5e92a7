"""What a report says of differences: paired, in full in CSV, with what could have been found, and what is no figure."""

import csv
import io

import numpy as np
import pytest

from idp.records.collect import collect
from idp.report.costs import cost_table
from idp.report.embedded import embedded
from idp.report.formats import comma_separated, markdown
from idp.report.intervals import difference_table
from idp.report.nine_tasks import score_table
from idp.report.view import views
from tests.report.made import DATA, PROMPT, seeds_by_repair

ORACLE = {"kind": "idp", "selector": {"kind": "mine"}}


def outcomes_of(broken=0.3, mended=0.5, seed=0, documents=200):
    """Right and wrong of documents: compression breaks a share of what dense knows, a repair mends a share of that."""
    generator = np.random.default_rng(seed)
    dense = {task: generator.random(documents) < 0.7 for task in DATA}
    compressed = {task: right & (generator.random(documents) >= broken) for task, right in dense.items()}
    repaired = {
        task: right | (dense[task] & (generator.random(documents) < mended)) for task, right in compressed.items()
    }
    models = {"dense": dense, "compressed": compressed, "repaired": repaired}
    return lambda model, task: models[model][task].astype(float)


def view_of(tmp_path):
    (view,) = views(collect([tmp_path / "runs"]))
    return view


def in_csv(view):
    text = comma_separated([score_table(view), cost_table(view), difference_table(view)])
    header, *rows = csv.reader(io.StringIO(text))
    assert len(set(header)) == len(header)
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_csv_has_every_figure_in_full(record, tmp_path):
    from scipy.stats import t, ttest_rel

    right = outcomes_of()
    record("prompt", recovery=PROMPT, right=right)
    dense, compressed, repaired = in_csv(view_of(tmp_path))
    assert not any(key.startswith("arc_easy to") and dense[key] for key in dense)
    scores = {row: right(row, "arc_easy") for row in ("dense", "compressed", "repaired")}
    mean, error = scores["repaired"].mean(), scores["repaired"].std(ddof=1) / 200**0.5
    assert float(repaired["arc_easy"]) == pytest.approx(mean) and float(repaired["arc_easy stderr"]) == 0.08
    assert float(repaired["arc_easy high"]) == pytest.approx(mean + t.ppf(0.975, 199) * error)
    assert repaired["arc_easy documents"] == "200" and repaired["mean of 2 documents"] == "400"
    assert repaired["arc_easy metric"] == "acc"
    for kind in ("dense", "compressed"):
        found = ttest_rel(scores["repaired"], scores[kind])
        low, high = found.confidence_interval(0.95)
        name = f"arc_easy to {kind}"
        assert float(repaired[name]) == pytest.approx(scores["repaired"].mean() - scores[kind].mean())
        assert (float(repaired[f"{name} low"]), float(repaired[f"{name} high"])) == pytest.approx((low, high))
        assert float(repaired[f"{name} detectable"]) > 0 and repaired[f"{name} test"] == "mcnemar"
        assert float(repaired[f"{name} gained"]) == (scores["repaired"] > scores[kind]).sum()
    assert compressed["arc_easy to dense"] and not compressed["arc_easy to compressed"]
    assert {row["runs"] for row in (dense, compressed, repaired)} == {"1"}


def test_csv_of_several_runs_has_deviation_and_runs(record, tmp_path):
    seeds_by_repair(record, lambda seed: seed)
    view = view_of(tmp_path)
    _, compressed, repaired = in_csv(view)
    assert (compressed["runs"], repaired["runs"], repaired["seeds"]) == ("3", "3", "0, 1, 2; calibration 0, 1, 2")
    assert float(compressed["arc_easy deviation"]) == pytest.approx(view.rows[1].spread(["arc_easy"]))
    assert float(repaired["mean of 2 to compressed low"]) < float(repaired["mean of 2 to compressed high"])


def test_stand_ins_are_named_beside_every_figure(record, tmp_path):
    def stands_in(record):
        record["idp"]["data"]["piqa"]["stand_in"] = "siqa"
        for place in (record["results"], *(each["results"] for each in record["idp"]["baselines"].values())):
            place["siqa"] = place.pop("piqa")

    record("prompt", recovery=PROMPT, right=outcomes_of(), change=stands_in)
    view = view_of(tmp_path)
    row = in_csv(view)[2]
    assert row["piqa (stand-in: siqa) stand-in"] == row["mean of 2 (1 stand-in) stand-in"] == "siqa"
    assert row["piqa (stand-in: siqa) to dense low"] and row["mean of 2 (1 stand-in) to dense low"]
    assert "mean of 2 (1 stand-in)" in markdown(score_table(view))
    from idp.report.drawing import score_label

    assert score_label(view) == "mean of 2 tasks (1 stand-in)"


def test_an_interval_of_one_run_says_whose_it_is(record, tmp_path):
    record("prompt", recovery=PROMPT, right=outcomes_of())
    said = markdown(score_table(view_of(tmp_path)))
    assert "¹ of one run: the interval holds for this seed only" in said and ")¹" in said
    record("more", seed=1, recovery=PROMPT, right=outcomes_of())
    repaired = score_table(view_of(tmp_path)).rows[2]
    assert "¹" not in repaired["difference"].text and repaired["runs"].value == 2


def test_rounding_to_nearest_has_no_seed(record, tmp_path):
    def rounded(record):
        record["idp"]["config"]["compressor"]["quantization"]["method"] = "rtn"

    record("none", right=outcomes_of())
    assert score_table(view_of(tmp_path)).rows[1]["difference"].text.endswith("¹")
    record("rounded", compressor="rtn3", right=outcomes_of(), change=rounded)
    assert not score_table(view_of(tmp_path)).rows[2]["difference"].text.endswith("¹")


def test_an_upper_bound_is_labelled_by_what_it_does_not_by_its_name(record, tmp_path):
    def uses_labels(record):
        record["idp"]["selector"] = {"kind": "mine", "peeks": True}

    record("oracle", recovery=ORACLE, right=outcomes_of(), change=uses_labels)
    view = view_of(tmp_path)
    assert "idp (mine, upper bound: uses the labels)" in view.rows[2].name
    assert "upper bound: it uses the labels" in markdown(score_table(view))
    assert not view.compared[view.rows[2].id].differs()  # it claims nothing, and takes no part in Holm's adjustment
    compressed = view.compared[view.rows[1].id].mean
    assert compressed.adjusted == compressed.p < 0.05


def test_above_0_is_better_where_less_is_more(record, tmp_path):
    def errors(record):
        for task in record["results"]:
            record.setdefault("higher_is_better", {})[task] = {"acc": False}

    right = outcomes_of()
    record("prompt", recovery=PROMPT, right=lambda model, task: 1 - right(model, task), change=errors)
    view = view_of(tmp_path)
    damage, gain = (view.compared[row.id].tasks["arc_easy"].difference for row in view.rows[1:])
    assert damage < 0 < gain
    stored = embedded(view, 10**6)["rows"]
    assert all(row["arc_easy"]["runs"][0].startswith("f") for row in stored.values())


@pytest.mark.parametrize("broken", [0.0, 0.3])
def test_a_share_of_the_damage_stands_only_where_there_is_damage(broken, record, tmp_path):
    from idp.stats.damage import brought_back

    right = outcomes_of(broken)
    record("prompt", recovery=PROMPT, right=right)
    view = view_of(tmp_path)
    entry = score_table(view).rows[2]["brought back"]
    if not broken:
        assert entry.text == "no damage beyond noise" and entry.value is None
        return
    wanted = brought_back(
        {task: tuple(right(row, task) for row in ("dense", "compressed", "repaired")) for task in DATA}
    )
    assert (entry.value, entry.low, entry.high) == pytest.approx((wanted.share, wanted.low, wanted.high), rel=1e-3)


def test_without_outcomes_the_runs_own_comparisons_stand(record, tmp_path):
    test = {"difference": -0.2, "low": -0.3, "high": -0.1, "p": 0.001, "detectable": 0.1, "documents": 40}

    def compared(record):
        whole = {"mean": test, "tasks": dict.fromkeys(DATA, test), "graded": None, "unit": "share"}
        record["idp"]["comparisons"] = [{"after": "compressed", "before": "dense", **whole}]

    (record("none", change=compared) / "samples.parquet").unlink()
    compressed = score_table(view_of(tmp_path)).rows[1]
    assert compressed["difference"].text == "-20.0 (-30.0 to -10.0)¹" and compressed["detectable"].value == 0.1


def test_divergence_from_dense_is_a_column(record, tmp_path):
    def diverges(kl):
        figures = {"mean_kl": kl, "median_kl": kl / 2, "p99_kl": 3.0, "same_top": 0.9, "tokens": 64, "stderr": 0.01}
        flips = {"right_to_wrong": 5, "wrong_to_right": 2}

        def change(record):
            rows = {"texts": {"text": figures}, "tasks": {"piqa": figures | {"flips": flips}}}
            record["idp"]["fidelity"] = {"compressed": rows, "repaired": rows}

        return change

    for seed, kl in ((0, 0.25), (1, 0.35)):
        record(f"prompt-{seed}", seed=seed, recovery=PROMPT, change=diverges(kl))
    view = view_of(tmp_path)
    table = cost_table(view)
    assert [row["text KL"].text for row in table.rows] == ["-", "0.25", "0.3 ±0.071"]
    assert "text KL to dense" in markdown(table) and "piqa KL" not in markdown(table)
    row = in_csv(view)[2]
    assert float(row["text KL to dense"]) == pytest.approx(0.3) and float(row["text KL to dense p99"]) == 3.0
    assert float(row["piqa KL to dense right to wrong"]) == 5 and float(row["text KL to dense stderr"]) == 0.01


def test_groups_that_runs_name_have_their_means(record, tmp_path, monkeypatch):
    from idp.report import nine_tasks

    def grouped(record):
        record["idp"]["groups"] = {"STEM": {"dense": {"score": 0.5, "tasks": ["piqa"]}}, "absent": {}}
        record["idp"]["config"]["task"] = {"groups": {"all of it": list(DATA), "unmeasured": ["boolq"]}}

    record("prompt", recovery=PROMPT, right=outcomes_of(), change=grouped)
    view = view_of(tmp_path)
    assert view.groups == {"all of it": list(DATA), "STEM": ["piqa"]}
    row = score_table(view).rows[2]
    assert row["mean STEM"].value == row["piqa"].value and row["mean all of it"].value == row["mean"].value
    assert view.to_dense[view.rows[2].id].groups["STEM"].low == view.to_dense[view.rows[2].id].tasks["piqa"].low
    monkeypatch.setattr(nine_tasks, "MANY_TASKS", 1)
    nine_tasks.score_table.cache_clear()
    said = markdown(score_table(view))
    assert "mean STEM" in said and "| piqa" not in said and "columns in table.csv" in said
    assert in_csv(view)[2]["piqa"]
