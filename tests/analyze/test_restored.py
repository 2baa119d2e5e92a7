"""Whether a repair brings back what dense knew: impostors, the second dense model that tells, and the figures."""

import json
from dataclasses import replace

import numpy as np
import pytest

from idp.analyze import fate
from idp.analyze.cells import cells_of
from idp.analyze.claims import check
from idp.analyze.displaced import confidence, displaced, fate_of, page
from idp.analyze.second import second_dense
from tests.analyze.conftest import PROMPT
from tests.analyze.impostors import KINDS, SUPPORTED, rates


@pytest.mark.parametrize("kind", KINDS)
def test_impostors_are_told_from_knowledge_brought_back(kind):
    found = rates(kind, documents=300, studies=24)
    without = rates(kind, documents=300, studies=3, control=False)
    assert without[SUPPORTED] == 0
    if KINDS[kind]:
        assert found[SUPPORTED] > 0.8 and found["figure"] > 0.13
    else:
        assert found[SUPPORTED] < 0.05 and found["figure"] < 0.06


@pytest.mark.parametrize(("spread", "runs"), [(0.0, 3), (0.02, 3), (0.0, 1)])
def test_gains_are_covered_by_their_intervals(spread, runs):
    """Runs that differ by documents alone, and runs that differ by themselves: neither too wide nor too narrow."""
    draw, covered, studies, documents = np.random.default_rng(0), 0, 300, 120
    for _ in range(studies):
        own = draw.normal(0, spread, runs)[:, None]
        known = {task: draw.random(documents) < 0.6 for task in "ab"}
        before = {task: np.where(right, draw.random(documents) < 0.7, False) for task, right in known.items()}
        after = {
            task: draw.random((runs, documents)) < np.where(right, 0.8 + own, 0.1) for task, right in known.items()
        }
        found = fate.gains(known, before, after)["gain_on_known"]
        covered += found.low <= 0.1 <= found.high
    assert 0.92 <= covered / studies <= 0.985


@pytest.fixture
def four(study):
    """Dense, compressed, repaired and second dense on two tasks; the outcomes of each."""
    draw = np.random.default_rng(1)
    dense, second, compressed, repaired = ({task: draw.random(200) < 0.6 for task in "ab"} for _ in range(4))
    study.add("dense", dense)
    study.add("compressed", compressed, "gptq3")
    study.add("repaired", repaired, "gptq3", PROMPT)
    return dense, second, compressed, repaired


def test_the_control_is_a_count_over_the_documents_that_both_models_share(study, four):
    """The second model has its own setting: fewer documents, in another order, and a task of other documents."""
    dense, second, compressed, repaired = four
    ids = {"a": list(range(0, 200, 2))[::-1]}
    study.add_second({"a": second["a"][ids["a"]], "b": second["b"]}, doc_ids=ids)
    study.collection.settings[1].sample["task:b"] = ("b", "another fingerprint", 200)
    d, o, c, r = (side["a"][::2] for side in (dense, second, compressed, repaired))
    gain = r.astype(float) - c
    alone, others = gain[d & ~o].mean(), gain[~d & o].mean()
    cells = cells_of(study.collection, study.setting)
    found = fate_of(*cells, second_dense(study.collection, cells[0].first))
    values = {name: interval.difference for name, interval in found.control.items()}
    assert values == pytest.approx(
        {
            "gain_where_dense_alone": alone,
            "gain_where_other_alone": others,
            "control": alone - others,
            "own_beyond_shared": alone - 2 * others,
        }
    )
    result = displaced(study.collection)
    json.dumps(result, allow_nan=False)
    [repair] = result["settings"][0]["repairs"]
    control = repair["control"]
    assert control["model"] == "other" and control["documents"] == 100 and control["tasks"] == ["a"]
    assert control["accuracy"] == pytest.approx({"dense": d.mean(), "other": o.mean()})
    assert control["same"] == pytest.approx((d == o).mean())
    assert "Held against a second dense model, other: " in page(result)


def test_of_several_models_the_nearest_of_like_accuracy_is_the_control(study, four, draw):
    dense = next(model for model in study.collection.models if model.role == "dense")
    for name, accuracy in (("weak", 0.2), ("near", 0.62), ("far", 0.67)):
        study.add_second({task: draw(accuracy, 200) for task in "ab"}, name)
    assert second_dense(study.collection, dense).model.model == "near"


def test_a_model_of_another_accuracy_is_no_control_and_is_named(study, four, draw):
    study.add_second({task: draw(0.2, 200) for task in "ab"}, "weak")
    [claim] = [each for each in check(study.collection)["settings"][0]["claims"] if "displaced" in each["title"]]
    [evidence] = claim["evidence"]
    assert evidence["p"] is None and evidence["verdict"] != SUPPORTED
    assert "weak (20.0 % against" in evidence["note"] and "too far off to be a control" in evidence["note"]
    assert "no control" in page(displaced(study.collection))


def test_the_same_model_in_another_dtype_is_no_second_one(study, four):
    study.add_second(four[1], "other")
    dense, other = (model for model in study.collection.models if model.role == "dense")
    other.model = "toy"
    assert second_dense(study.collection, dense) is None


def test_without_a_second_model_the_page_says_how_to_measure_one(study, four):
    command = "`python -m idp.run model=<another> compressor=none recovery=none task=<the same> budget=<the same>`"
    assert command in page(displaced(study.collection))


def test_confidence_weighs_tasks_alike(study, draw):
    """One task has ten times the documents of the other."""
    tasks = {"a": draw(0.5, 400), "b": draw(0.5, 40)}
    for role, compressor, recovery, sure in (
        ("dense", "none", None, (0.9, 0.7)),
        ("compressed", "gptq3", None, (0.6, 0.6)),
        ("repaired", "gptq3", PROMPT, (0.8, 0.6)),
    ):
        study.add(role, tasks, compressor, recovery, sure=dict(zip("ab", sure, strict=True)))
    known = confidence(*cells_of(study.collection, study.setting))["known"]
    assert known == pytest.approx({"dense": 0.8, "compressed": 0.6, "repaired": 0.7, "documents": 220, "returned": 0.5})


def test_confidence_is_normalised_as_the_answer_is(study, monkeypatch):
    """By length the long choice wins, which its plain likelihood would hide."""
    metric = "acc_norm,none"
    for role, compressor, recovery in (
        ("dense", "none", None),
        ("compressed", "gptq3", None),
        ("repaired", "gptq3", PROMPT),
    ):
        model = study.add(role, {"a": np.ones(4, bool)}, compressor, recovery)
        score = model.tasks["a"]
        _lengthen(score.samples, metric)
        model.tasks["a"] = replace(score, metric=metric)
    known = confidence(*cells_of(study.collection, study.setting))["known"]
    nats = np.array([-3.0 / 6, -1.0 / 1]) * 3.5  # " longer" and " b", by characters and the mean of both
    assert known["dense"] == pytest.approx(np.exp(nats[0]) / np.exp(nats).sum())


def _lengthen(file, metric):
    import pyarrow as arrow
    from pyarrow import parquet

    rows = parquet.read_table(file).to_pylist()
    for row in rows:
        row |= {"choices": [" longer", " b"], "loglikelihoods": [-3.0, -1.0], "target": " longer"}
        row[f"metric:{metric}"] = 1.0
    parquet.write_table(arrow.Table.from_pylist(rows), file)
