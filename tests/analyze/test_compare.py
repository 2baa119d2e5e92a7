"""Effects and tests of a study whose outcomes are known."""

import pytest
from scipy.stats import norm

from idp.analyze.compare import compare, page, verdict
from idp.stats.significance import holm, mcnemar
from tests.analyze.conftest import IDP, LORA


def test_effects_and_their_tests(study, draw, turned):
    dense = {"a": draw(0.6), "b": draw(0.5, seed=1)}
    compressed = {task: turned(right, lost=60) for task, right in dense.items()}
    repaired = {"a": turned(compressed["a"], gained=50), "b": turned(compressed["b"], gained=2, lost=1)}
    study.add("dense", dense)
    study.add("compressed", compressed, "gptq3")
    study.add("repaired", repaired, "gptq3", LORA)
    for seed in range(3):
        study.add("repaired", repaired, "gptq3", IDP, seed=seed)
    study.add("repaired", repaired, "gptq4", LORA)
    result = compare(study.collection)
    [setting] = result["settings"]
    by_name = {found["after"]: found for found in setting["comparisons"]}
    assert list(by_name) == ["gptq3", "gptq3 + lora", "gptq3 + idp (attention)"]
    assert by_name["gptq3"]["mean"]["difference"] == pytest.approx(-0.15)
    lora = by_name["gptq3 + lora"]
    assert (lora["before"], lora["runs"], lora["documents"]) == ("gptq3", [1, 1], 800)
    assert lora["mean"]["difference"] == pytest.approx((50 / 400 + 1 / 400) / 2)
    assert (
        lora["tasks"]["b"]["p"] == mcnemar(compressed["b"], repaired["b"]) and lora["tasks"]["b"]["test"] == "mcnemar"
    )
    idp = by_name["gptq3 + idp (attention)"]
    assert idp["runs"] == [1, 3] and idp["tasks"]["a"]["test"] == "t_test"
    tasks = [task for found in setting["comparisons"] for task in found["tasks"].values()]
    assert [task["p_adjusted"] for task in tasks] == holm([task["p"] for task in tasks])
    assert setting["not_compared"] == ["gptq4 + lora: what it was made from was not measured"]
    text = page(result)
    assert "**-15.0 (-" in text and "a +12.5" in text and "b +0.2" not in text
    assert "not compared: gptq4 + lora" in text


def test_models_of_other_documents_are_named(study, draw):
    study.add("dense", {"a": draw(0.5), "b": draw(0.5)})
    study.add("compressed", {"a": draw(0.5), "c": draw(0.5)}, "gptq3")
    study.add("compressed", {"c": draw(0.5)}, "gptq4")
    result = compare(study.collection)
    assert "so left out: b, c" in page(result)
    assert result["settings"][0]["not_compared"] == [
        "gptq4 and dense: no task was measured on the same documents by both"
    ]


def test_what_is_undecided_says_what_it_would_have_found(study, draw, turned):
    dense = {"a": draw(0.6, documents=200), "b": draw(0.5, documents=200, seed=1)}
    compressed = {task: turned(right, gained=8, lost=12) for task, right in dense.items()}
    study.add("dense", dense)
    study.add("compressed", compressed, "gptq4")
    study.add("compressed", dense, "gptq8")
    study.add("repaired", {task: turned(right, gained=60) for task, right in compressed.items()}, "gptq4", LORA)
    for seed, gained in enumerate((0, 30, 60)):
        more = {task: turned(right, gained=gained) for task, right in compressed.items()}
        study.add("repaired", more, "gptq4", IDP, seed=seed)
    result = compare(study.collection)
    by_name = {found["after"]: found for found in result["settings"][0]["comparisons"]}
    test = by_name["gptq4"]["mean"]
    error = (0.1 - 0.02**2) ** 0.5 / 400**0.5
    assert test["detectable"] == pytest.approx(2.8 * error, rel=0.02)
    # Three of the four means are undecided, so the next of them to be decided is held against a third of the level.
    multiple = (norm.ppf(1 - 0.05 / 3 / 2) + norm.ppf(0.8)) ** 2
    assert test["documents_to_decide"] == pytest.approx(multiple * error**2 / 0.02**2 * 200, rel=0.02)
    said = f"undecided: detects 4.4 points; {test['documents_to_decide']:,} documents a task would decide"
    assert verdict(test) == said
    assert verdict(by_name["gptq8"]["mean"]) == "undecided: no document differs"
    assert verdict(by_name["gptq4 + lora"]["mean"]) == "better"
    idp = by_name["gptq4 + idp (attention)"]
    assert idp["mean"]["documents_to_decide"] is None
    assert verdict(idp["mean"], idp["runs"]).endswith("more documents would not decide, more runs might")
    text = page(result)
    assert said in text
    assert "- gptq4 + lora: one run: the interval holds for that seed only" in text
    assert "idp (attention): one run" not in text and "two runs" not in text


def test_the_probability_of_the_right_choice_is_a_table_of_its_own(study, draw):
    """Models that are right on the same documents, and differ in how sure they are."""
    right = {"a": draw(0.6), "b": draw(0.7, seed=1)}
    study.add("dense", right, sure=0.9)
    study.add("compressed", right, "gptq3", sure=0.8)
    result = compare(study.collection)
    [found] = result["settings"][0]["comparisons"]
    assert found["mean"]["difference"] == 0 and found["mean"]["p_adjusted"] == 1
    graded = found["graded"]["mean"]
    assert graded["difference"] == pytest.approx(-0.1 * (2 * 0.65 - 1)) and graded["p_adjusted"] < 0.001
    hits, probability = page(result).split("The probability of the right choice")
    assert "undecided" in hits and "worse" not in hits and "| worse" in probability and "**-3.0 (-" in probability
