"""What a record says of one model against another: the same documents, the right sign, and shares of real damage."""

import json

import numpy as np
import pytest

from idp.evaluate.comparisons import of_run
from idp.stats.significance import comparison

from ..outcomes import Measured, hits, measured, product, sources

DENSE = hits(90, 120)
COMPRESSED = hits(90, 120, turned_right=2, turned_wrong=30)
REPAIRED = hits(90, 120, turned_right=6, turned_wrong=18)


def by_pair(found):
    return {(each["after"], each["before"]): each for each in found}


def test_every_pair_is_the_paired_comparison_of_its_documents(tmp_path):
    rows = {"dense": DENSE, "compressed": COMPRESSED, "repaired": REPAIRED}
    found = of_run(
        measured(tmp_path, {row: {"arc_easy": scores} for row, scores in rows.items()}), sources(["arc_easy"])
    )
    assert [(each["after"], each["before"]) for each in found] == [
        ("compressed", "dense"),
        ("repaired", "compressed"),
        ("repaired", "dense"),
    ]
    for each in found:
        expected = comparison({"arc_easy": (rows[each["before"]], rows[each["after"]])})
        assert each["mean"] == pytest.approx(expected["mean"]) and each["unit"] == "share"
        assert each["left_out"] == [] and each["groups"] == {}
    repair = by_pair(found)["repaired", "compressed"]
    task = repair["tasks"]["arc_easy"]
    assert (task["gained"], task["lost"]) == (16, 0)
    # 30 documents that dense has right were broken, of which 12 are right again; 4 more never were dense's.
    assert (task["broken"], task["brought_back"]) == (30, 12)
    share = (sum(REPAIRED) - sum(COMPRESSED)) / (sum(DENSE) - sum(COMPRESSED))
    assert repair["damage_brought_back"]["share"] == pytest.approx(share) == task["damage_brought_back"]["share"]
    assert "damage_brought_back" not in by_pair(found)["repaired", "dense"]
    assert json.loads(json.dumps(found)) == found
    # A right choice has 0.7 and a wrong one 0.3, so the graded outcome moves by 0.4 of what hits do.
    assert repair["graded"]["mean"]["difference"] == pytest.approx(0.4 * repair["mean"]["difference"])


def test_texts_are_paired_by_their_windows(tmp_path):
    """Windows differ by nats, models by tenths; what both share takes no part in the interval."""
    drawn = np.random.default_rng(0)
    base, noise = drawn.normal(3.5, 1.0, 40), drawn.normal(0, 0.02, (2, 40))
    losses = {"dense": base, "compressed": base + 0.5 + noise[0], "repaired": base + 0.4 + noise[1]}
    tasks = {row: {"arc_easy": scores} for row, scores in (("dense", DENSE), ("compressed", COMPRESSED))}
    tasks["repaired"] = {"arc_easy": REPAIRED}
    found = by_pair(of_run(measured(tmp_path, tasks, {row: {"c4": values} for row, values in losses.items()}),
                           sources(["arc_easy"])))  # fmt: skip
    damage, repair = (found[pair]["texts"]["c4"] for pair in (("compressed", "dense"), ("repaired", "compressed")))
    assert damage["difference"] == pytest.approx(-0.5 - noise[0].mean()) and damage["windows"] == 40
    gain = losses["compressed"] - losses["repaired"]
    assert repair["difference"] == pytest.approx(gain.mean())
    assert repair["high"] - repair["low"] == pytest.approx(2 * 2.02 * gain.std(ddof=1) / 40**0.5, rel=0.02)
    share = repair["damage_brought_back"]
    assert share["share"] == pytest.approx(-repair["difference"] / damage["difference"])
    assert share["low"] < share["share"] < share["high"] < share["low"] + 0.06
    assert "damage_brought_back" not in damage and json.loads(json.dumps(repair)) == repair


@pytest.mark.parametrize("odd", [[3.0], [3.0, float("inf"), 3.0], [3.0, 3.1]], ids=["one", "infinite", "fewer"])
def test_a_text_that_cannot_be_paired_is_left_out(tmp_path, odd):
    tasks = {"dense": {"arc_easy": DENSE}, "compressed": {"arc_easy": COMPRESSED}}
    losses = {"dense": {"c4": odd if len(odd) == 1 else [3.0, 3.1, 3.2]}, "compressed": {"c4": odd}}
    (found,) = of_run(measured(tmp_path, tasks, losses), sources(["arc_easy"]))
    assert found["texts"] == {}


def test_documents_are_paired_by_their_number_whatever_their_order(tmp_path):
    scores = {"dense": DENSE, "compressed": COMPRESSED}
    plain = of_run(
        measured(tmp_path / "plain", {row: {"piqa": each} for row, each in scores.items()}), sources(["piqa"])
    )
    made = {
        row: Measured(row, {"piqa": product(tmp_path / row, "piqa", each, order=order)})
        for (row, each), order in zip(scores.items(), (list(range(120)), list(range(119, -1, -1))), strict=True)
    }
    assert of_run(made, sources(["piqa"])) == plain
    assert plain[0]["tasks"]["piqa"]["gained"] == 2


def test_no_damage_beyond_noise_has_no_share(tmp_path):
    rows = {"dense": DENSE, "compressed": hits(90, 120, 3, 5), "repaired": hits(90, 120, 0, 20)}
    found = by_pair(of_run(measured(tmp_path, {r: {"piqa": s} for r, s in rows.items()}), sources(["piqa"])))
    repair = found["repaired", "compressed"]
    assert repair["damage_brought_back"] is None and repair["tasks"]["piqa"]["damage_brought_back"] is None
    assert repair["mean"]["high"] < 0


def test_damage_of_one_task_among_many_is_adjusted_for_their_number(tmp_path):
    """Three documents in a hundred are lost by one task of nine: alone that is p = 0.03, among nine it is noise."""
    tasks = [f"task_{number}" for number in range(9)]
    dense = dict.fromkeys(tasks, hits(50, 100))
    compressed = dense | {"task_0": hits(50, 100, turned_wrong=6)}
    rows = {"dense": dense, "compressed": compressed, "repaired": dense}
    found = by_pair(of_run(measured(tmp_path, rows), sources(tasks)))
    assert found["compressed", "dense"]["tasks"]["task_0"]["p"] == pytest.approx(0.03125)
    assert found["repaired", "compressed"]["tasks"]["task_0"]["damage_brought_back"] is None


@pytest.mark.parametrize("scores", ["shares", "numbers"])
def test_where_lower_is_better_a_fall_is_a_gain(tmp_path, scores):
    before, after = (hits(80, 100), hits(80, 100, turned_wrong=20)) if scores == "shares" else ([4.0, 5.0], [3.0, 4.5])
    made = measured(
        tmp_path, {"dense": {"crows": before}, "compressed": {"crows": after}}, metric="bias,none", lower=True
    )
    (found,) = of_run(made, sources(["crows"]))
    change = sum(before) / len(before) - sum(after) / len(after)
    assert found["mean"]["difference"] == pytest.approx(change) and change > 0
    assert found["unit"] == ("share" if scores == "shares" else "score")
    assert found["tasks"]["crows"]["gained"] == (20 if scores == "shares" else None)


def test_a_score_that_is_no_mean_over_documents_has_no_difference(tmp_path):
    models = {"dense": {"f1": DENSE, "piqa": DENSE}, "compressed": {"f1": COMPRESSED, "piqa": COMPRESSED}}
    made = {
        row: Measured(
            row,
            {
                "f1": product(tmp_path / row / "f1", "f1", tasks["f1"], score=0.123),
                "piqa": product(tmp_path / row / "piqa", "piqa", tasks["piqa"]),
            },
        )
        for row, tasks in models.items()
    }
    (found,) = of_run(made, sources(["f1", "piqa"]))
    assert found["left_out"] == ["f1"] and list(found["tasks"]) == ["piqa"]
    (nothing,) = of_run(made, sources(["f1"]))
    assert nothing["mean"] is None and nothing["left_out"] == ["f1"]


def test_groups_are_means_over_their_tasks(tmp_path):
    rows = {
        "dense": {"a": DENSE, "b": DENSE, "c": DENSE},
        "compressed": {"a": COMPRESSED, "b": DENSE, "c": DENSE},
        "repaired": {"a": REPAIRED, "b": DENSE, "c": DENSE},
    }
    found = by_pair(of_run(measured(tmp_path, rows), sources("abc"), {"STEM": ["a", "b"], "other": ["c"]}))
    group = found["compressed", "dense"]["groups"]["STEM"]
    assert group == comparison({task: (rows["dense"][task], rows["compressed"][task]) for task in "ab"})["mean"]
    repair = found["repaired", "compressed"]["groups"]
    share = (sum(REPAIRED) - sum(COMPRESSED)) / (sum(DENSE) - sum(COMPRESSED))
    assert repair["STEM"]["damage_brought_back"]["share"] == pytest.approx(share)
    assert repair["other"]["damage_brought_back"] is None


def test_one_model_has_nothing_to_be_compared_with(tmp_path):
    assert of_run(measured(tmp_path, {"repaired": {"piqa": DENSE}}), sources(["piqa"])) == []
