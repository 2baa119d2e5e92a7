"""Effects and tests of a study whose outcomes are known."""

import pytest

from idp.analyze.compare import compare, page
from idp.analyze.significance import holm, mcnemar
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
