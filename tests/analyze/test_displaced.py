"""The fate of documents, against counting them."""

import itertools
import random

import numpy as np
import pytest

from idp.analyze.cells import cells_of
from idp.analyze.displaced import confidence, displaced, fate_of, overlap, page
from tests.analyze.conftest import IDP, LORA, PROMPT


def outcomes(seed, documents=300):
    """Three models of which the third is nearer to the first."""
    draw = np.random.default_rng(seed)
    dense = draw.random(documents) < 0.6
    compressed = np.where(draw.random(documents) < 0.7, dense, draw.random(documents) < 0.4)
    repaired = np.where(draw.random(documents) < 0.7, dense, compressed) ^ (draw.random(documents) < 0.02)
    return dense, compressed, repaired


def test_shares_are_those_of_a_count(study):
    tasks = {name: outcomes(seed) for seed, name in enumerate("ab")}
    for place, (role, compressor, recovery) in enumerate(
        [("dense", "none", None), ("compressed", "gptq3", None), ("repaired", "gptq3", PROMPT)]
    ):
        study.add(role, {task: found[place] for task, found in tasks.items()}, compressor, recovery)
    fate = fate_of(*cells_of(study.collection, study.setting))

    def mean(condition):
        return np.mean([condition(*found).mean() for found in tasks.values()])

    known = mean(lambda d, c, r: d & r) / mean(lambda d, c, r: d) - mean(lambda d, c, r: d & c) / mean(
        lambda d, c, r: d
    )
    unknown = (mean(lambda d, c, r: ~d & r) - mean(lambda d, c, r: ~d & c)) / mean(lambda d, c, r: ~d)
    restored = mean(lambda d, c, r: d & ~c & r) / mean(lambda d, c, r: d & ~c)
    learned = mean(lambda d, c, r: ~d & ~c & r) / mean(lambda d, c, r: ~d & ~c)
    broken = mean(lambda d, c, r: d & c & ~r) / mean(lambda d, c, r: d & c)
    expected = {
        "gain_on_known": known,
        "gain_on_unknown": unknown,
        "specific_gain": known - unknown,
        "restored": restored,
        "learned": learned,
        "restored_beyond_learned": restored - learned,
        "newly_broken": broken,
    }
    assert {name: share.difference for name, share in fate.shares.items()} == pytest.approx(expected)
    assert all(share.low < share.difference < share.high for share in fate.shares.values())
    assert fate.shares["gain_on_known"].p < 0.001 and fate.documents == 600
    assert fate.counts[0]["broken"] == fate.broken == sum((d & ~c).sum() for d, c, _ in tasks.values())
    assert len(fate.restored[0]) == fate.counts[0]["restored"]


def test_shuffled_answers_restore_much_and_gain_nothing(study):
    """Of documents that compression broke, another model as bad as the compressed one has many right."""
    dense = outcomes(0, 4000)[0]

    def worse(seed):
        draw = np.random.default_rng(seed)
        return np.where(draw.random(4000) < 0.7, dense, draw.random(4000) < 0.4)

    study.add("dense", {"a": dense})
    study.add("compressed", {"a": worse(1)}, "gptq3")
    study.add("repaired", {"a": worse(2)}, "gptq3", PROMPT)
    shares = fate_of(*cells_of(study.collection, study.setting)).shares
    assert shares["restored"].difference > 0.7 and shares["restored_beyond_learned"].p < 0.001
    assert shares["gain_on_known"].low < 0 < shares["gain_on_known"].high


def test_overlap_and_chance():
    broken, draw = list(range(30)), random.Random(0)
    one, other = set(broken[:12]), set(broken[8:28])
    found = overlap(one, other, len(broken))
    assert found["jaccard"] == pytest.approx(4 / 28)
    drawn = []
    for _ in range(4000):
        a, b = set(draw.sample(broken, 12)), set(draw.sample(broken, 20))
        drawn.append(len(a & b) / len(a | b))
    assert found["by_chance"] == pytest.approx(sum(drawn) / len(drawn), abs=0.01)
    assert overlap(set(), set(), 5) is None
    assert overlap(set(broken), set(broken), 30) == {"jaccard": 1.0, "by_chance": pytest.approx(1.0)}


def test_confidence_returns(study):
    right = np.array([1, 1, 1, 0, 0], bool)
    study.add("dense", {"a": right}, sure=0.9)
    study.add("compressed", {"a": right}, "gptq3", sure=0.6)
    for seed, sure in enumerate((0.7, 0.8)):
        study.add("repaired", {"a": right}, "gptq3", PROMPT, seed=seed, sure=sure)
    found = confidence(*cells_of(study.collection, study.setting))
    assert found["documents"] == 5
    assert found["known"] == pytest.approx(
        {"dense": 0.9, "compressed": 0.6, "repaired": 0.75, "documents": 3, "returned": 0.5}
    )
    assert (
        found["unknown"] == pytest.approx({"dense": 0.1, "compressed": 0.4, "repaired": 0.25, "documents": 2}, abs=1e-9)
        or found["unknown"]["returned"] is None
    )


def test_the_whole_analysis(study):
    tasks = {name: outcomes(seed) for seed, name in enumerate("ab")}
    third = {task: found[2] for task, found in tasks.items()}
    study.add("dense", {task: found[0] for task, found in tasks.items()})
    study.add("compressed", {task: found[1] for task, found in tasks.items()}, "gptq3")
    for seed in (0, 1):
        study.add("repaired", third, "gptq3", IDP, seed=seed)
    study.add("repaired", {task: outcomes(9)[2] for task in tasks}, "gptq3", LORA)
    study.add("repaired", third, "gptq4", LORA)
    study.add("repaired", third, recovery=LORA)  # on dense: nothing was broken
    result = displaced(study.collection)
    [setting] = result["settings"]
    assert [found["repair"] for found in setting["repairs"]] == [
        "gptq3 + idp (attention)",
        "gptq3 + lora",
    ]
    assert setting["repairs"][0]["runs"] == len(setting["repairs"][0]["counts"]) == 2
    pairs = {tuple(found["repairs"]): found for found in setting["overlaps"]}
    idp, lora = (found["repair"] for found in setting["repairs"])
    assert pairs[idp, idp]["jaccard"] == 1 and pairs[idp, lora]["pairs_of_runs"] == 2
    assert pairs[idp, lora]["jaccard"] < 1 and (lora, lora) not in pairs
    assert setting["not_compared"] == ["gptq4 + lora: the dense or the compressed model was not measured"]
    text = page(result)
    assert "gptq3 + lora" in text and "by chance" in text
    assert len(list(itertools.chain(setting["overlaps"]))) == 2
