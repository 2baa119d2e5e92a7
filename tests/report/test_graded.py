"""The probability of the right choice, read from a file of documents: by hand, and by the metric it must follow."""

import json

import numpy as np
import pyarrow as arrow
import pytest
from pyarrow import parquet

from idp.records.outcomes import graded_outcomes


@pytest.fixture
def read(tmp_path):
    """`read(metric, documents)`: the graded outcomes of documents, each a dict of what differs from the plain ones."""

    def written(metric, documents):
        rows = [
            {"model": "dense", "asked_for": "task", "doc_id": number, "greedy": [], "target": " a"}
            | {"choices": [" a", " b"], f"metric:{metric}": 1.0}
            | document
            for number, document in enumerate(documents)
        ]
        parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet")
        return graded_outcomes(max(tmp_path.iterdir(), key=lambda file: int(file.stem)), "dense", "task", metric)

    return written


def test_the_softmax_over_choices_in_the_order_of_documents(read):
    found = read(
        "acc,none",
        [
            {"doc_id": 7, "loglikelihoods": [-1.0, -3.0]},
            {"doc_id": 3, "loglikelihoods": [-9.0, -8.0], "metric:acc,none": 0.0},
            {"doc_id": 9, "choices": [" x", " a", " y"], "loglikelihoods": [-700.0, -690.0, -800.0]},
        ],
    )
    odds = np.exp([-1.0, 2.0, 10.0])
    assert found == pytest.approx(odds / (1 + odds))


def test_where_the_metric_divides_by_length_so_do_the_likelihoods(read):
    """A long choice that is likelier by its length, as lm-eval counts it: characters, the blank before it left out."""
    choices = [" four", " eight888"]
    document = {"choices": choices, "loglikelihoods": [-4.0, -6.0], "target": " eight888"}
    [found] = read("acc_norm,none", [document])
    mean = (4 + 8) / 2
    assert found == pytest.approx(1 / (1 + np.exp(mean * (-4 / 4 + 6 / 8)))) and found > 0.5
    [plain] = read("acc,none", [document | {"metric:acc,none": 0.0}])
    assert plain == pytest.approx(1 / (1 + np.exp(2.0)))
    # Bytes are another count: two for each of these characters.
    accents = {"choices": [" aaaa", " éééé"], "loglikelihoods": [-4.0, -4.4], "target": " éééé"}
    [by_bytes] = read("acc_bytes,none", [accents])
    assert by_bytes == pytest.approx(1 / (1 + np.exp(6 * (-4 / 4 + 4.4 / 8))))
    assert read("acc_norm,none", [accents | {"metric:acc_norm,none": 0.0}])[0] < 0.5


def test_choices_of_one_length_have_their_plain_probabilities(read):
    likelihoods = np.random.default_rng(0).normal(-5, 2, (50, 2)).tolist()
    rows = [{"loglikelihoods": each, "metric:acc,none": float(each[0] > each[1])} for each in likelihoods]
    normed = [row | {"metric:acc_norm,none": row["metric:acc,none"]} for row in rows]
    assert read("acc_norm,none", normed) == pytest.approx(read("acc,none", rows))


def test_several_right_choices_and_several_of_one_text(read):
    answers = {"choices": [" a", " b", " c"], "loglikelihoods": [-1.0, -2.0, -3.0], "target": json.dumps([" b", " c"])}
    [several] = read("acc,none", [answers | {"metric:acc,none": 0.0}])
    total = np.exp([-1.0, -2.0, -3.0])
    assert several == pytest.approx(total[1:].sum() / total.sum())
    [twice] = read("acc,none", [answers | {"choices": [" a", " a", " b"], "target": " a"}])
    assert twice == pytest.approx(total[:2].sum() / total.sum())


def test_one_continuation_has_its_probability(read):
    """lambada: right where greedy decoding gives the word."""
    word = {"choices": [" word"], "target": " word"}
    found = read(
        "acc,none",
        [
            word | {"loglikelihoods": [-0.5], "greedy": [True]},
            word | {"loglikelihoods": [-2.0], "greedy": [False], "metric:acc,none": 0.0},
        ],
    )
    assert found == pytest.approx(np.exp([-0.5, -2.0]))


@pytest.mark.parametrize(
    ("metric", "document"),
    [
        ("exact_match,none", {"choices": [], "loglikelihoods": [], "target": "Paris"}),  # generation
        ("f1,none", {"loglikelihoods": [-1.0, -2.0]}),  # no metric of hits
        (
            "acc,none",
            {"loglikelihoods": [-1.0, -2.0], "metric:acc,none": 0.37},
        ),  # graded itself, as mc2
        ("acc,none", {"loglikelihoods": [-1.0, -2.0], "metric:acc,none": 0.0}),  # another choice is the right one
        ("acc,none", {"loglikelihoods": [-1.0, -2.0], "target": "none of them"}),
        ("acc,none", {"loglikelihoods": [float("nan"), -2.0]}),
        ("acc,none", {"loglikelihoods": [-1.0, -2.0], "asked_for": "another task"}),
    ],
)
def test_nothing_is_said_where_the_right_choice_is_not_known(read, metric, document):
    assert read(metric, [document]) is None


def test_a_file_that_is_gone_or_of_another_kind(tmp_path):
    assert graded_outcomes(tmp_path / "none.parquet", "dense", "task", "acc,none") is None
    (tmp_path / "text.parquet").write_text("no Parquet")
    assert graded_outcomes(tmp_path / "text.parquet", "dense", "task", "acc,none") is None
