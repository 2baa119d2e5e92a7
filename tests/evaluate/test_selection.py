"""The worth of a choice, against plain loops."""

import math
import random

import numpy as np
import pytest

from idp.evaluate.selection import collapsed, entropy, gaps, greater, interval, of_task
from idp.records.tables import controls_table


def outcomes(documents=60, prompts=3, seed=0):
    draw = random.Random(seed)
    scores = [[float(draw.random() < 0.3 + 0.2 * prompt) for prompt in range(prompts)] for _ in range(documents)]
    return scores, [draw.randrange(prompts) for _ in range(documents)]


@pytest.mark.parametrize("higher", [True, False])
def test_every_way_to_choose(higher):
    scores, chosen = outcomes()
    found = of_task(np.array(scores), np.array(chosen), best=2, worst=0, higher=higher)
    n, pick = len(scores), max if higher else min
    for prompt in range(3):
        assert found["prompts"][prompt] == pytest.approx(sum(row[prompt] for row in scores) / n)
    assert found["best"] == found["prompts"][2] and found["worst"] == found["prompts"][0]
    assert found["random"] == pytest.approx(sum(sum(row) / 3 for row in scores) / n)
    assert found["oracle"] == pytest.approx(sum(pick(row) for row in scores) / n)
    assert found["chosen"] == pytest.approx(sum(row[one] for row, one in zip(scores, chosen, strict=True)) / n)
    agree = sum(row[one] == pick(row) for row, one in zip(scores, chosen, strict=True)) / n
    assert found["agreement"] == pytest.approx(agree)
    sign = 1 if higher else -1
    assert found["gap"] == pytest.approx(sign * (found["chosen"] - found["random"]))
    assert all(sign * found["oracle"] >= sign * other for other in [*found["prompts"], found["chosen"]])


def test_the_interval_is_that_of_a_plain_bootstrap(monkeypatch):
    parts = []
    for seed, documents in ((0, 40), (1, 90)):
        scores, chosen = outcomes(documents, seed=seed)
        parts.append(gaps(np.array(scores), np.array(chosen)))
    low, high = interval(parts, seed=3)
    assert [low, high] == interval(parts, seed=3) != interval(parts, seed=4)
    draw, means = random.Random(5), []
    for _ in range(4000):
        of_tasks = [sum(draw.choices(part.tolist(), k=len(part))) / len(part) for part in parts]
        means.append(sum(of_tasks) / len(of_tasks))
    means.sort()
    assert low == pytest.approx(means[100], abs=0.01) and high == pytest.approx(means[3900], abs=0.01)
    monkeypatch.setattr("idp.stats.bootstrap.CHUNK", 1000)  # drawn in pieces
    assert interval(parts, seed=3) == pytest.approx([low, high], abs=0.01)


def test_entropy_and_collapse():
    assert entropy([5, 5, 5]) == {"nats": pytest.approx(math.log(3)), "share": pytest.approx(1.0)}
    assert entropy([0, 7, 0]) == {"nats": 0.0, "share": 0.0}
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert entropy([1, 3])["nats"] == pytest.approx(expected)
    assert entropy([1, 3])["share"] == pytest.approx(expected / math.log(2))
    assert entropy([4]) == entropy([0, 0]) == {"nats": 0.0, "share": 0.0}
    counts = {
        "all": {"a": 0, "b": 100},
        "nearly": {"a": 5, "b": 95},
        "less": {"a": 6, "b": 94},
        "one prompt": {"a": 9},
        "nothing": {"a": 0, "b": 0},
    }
    assert collapsed(counts) == ["all", "nearly"]


def table_of(kind, peeks, chosen, **luck):
    """The table of controls of one task of which the oracle scores 0.9."""
    scores = {"worst": 0.5, "random": 0.6, "best": 0.7, "chosen": chosen, "oracle": 0.9}
    task = {**scores, "agreement": 0.8, "gap": 0.1, "gap_interval": [0.0, 0.2], **luck}
    controls = {"tasks": {"a": task}, "mean": task, "perplexity": {}}
    comparisons = [{"unit": "share"}]
    selector = {"kind": kind, "peeks": peeks}
    return controls_table({"controls": controls, "selector": selector, "comparisons": comparisons})


LUCK = {"oracle_by_luck": 0.88, "beyond_luck": 0.02, "beyond_luck_interval": [-0.01, 0.05]}


@pytest.mark.parametrize(
    ("kind", "peeks", "chosen", "column"),
    [
        ("attention", False, 0.65, "| attention "),
        ("mine", True, 0.5, "| mine (upper bound) "),
        ("oracle", True, 0.9, None),
    ],
)
def test_the_table_says_what_luck_explains_and_which_choice_uses_the_labels(kind, peeks, chosen, column):
    table = table_of(kind, peeks, chosen, **LUCK)
    assert "oracle (upper bound)" in table and "oracle by luck" in table and "+2.0 (-1.0 to +5.0)" in table
    assert column is None or column in table
    assert (f"{chosen:.3f}" in table) and table.count("0.900") == 1


def test_the_table_of_a_record_without_luck():
    table = table_of("attention", False, 0.65)
    assert "luck" not in table and "oracle (upper bound)" in table


def test_hits_stay_hits_where_less_is_better():
    assert greater(np.array([[0.0, 1.0]]), higher=False).tolist() == [[1.0, 0.0]]
    assert greater(np.array([[0.2, 1.0]]), higher=False).tolist() == [[-0.2, -1.0]]
