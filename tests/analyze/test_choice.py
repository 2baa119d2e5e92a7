"""Choices made with other documents' answers find what there is, no more, and never see their own document."""

import json

import numpy as np
import pytest
import torch

from idp.analyze.__main__ import main
from idp.analyze.choice import _difference, embed, of_answers
from idp.prompting.repaired import RepairedModel

IDP = ("compressor=gptq3", "recovery=idp", "recovery.lengths=[3,5]", "baselines=true")
TASKS, DOCUMENTS = ("first", "second"), 300


def drawn(generator, right):
    """Outcomes with the given chance of being right, [documents, prompts]."""
    return (generator.random(right.shape) < right).astype(float)


def mean(way):
    return np.mean([values.mean() for values in way.values()])


@pytest.fixture
def generator():
    return np.random.default_rng(0)


@pytest.fixture
def noise(generator):
    """Embeddings that say nothing."""
    return {task: generator.normal(size=(DOCUMENTS, 20)) for task in TASKS}


def test_where_tasks_want_different_prompts_the_task_is_enough(generator, noise):
    better = {"first": [0.7, 0.3], "second": [0.3, 0.7]}
    scores = {task: drawn(generator, np.tile(better[task], (DOCUMENTS, 1))) for task in TASKS}
    ways = of_answers(scores, noise, best=0)
    assert mean(ways["by task"]) == pytest.approx(0.7, abs=0.03)
    assert mean(ways["router"]) == pytest.approx(0.7, abs=0.05)
    assert mean(ways["one prompt"]) == pytest.approx(0.5, abs=0.04)


def test_what_the_text_tells_only_the_router_finds(generator, noise):
    scores = {}
    for task in TASKS:
        likes_first = noise[task][:, :1] > 0
        scores[task] = drawn(generator, np.where(likes_first, [0.8, 0.3], [0.3, 0.8]))
    ways = of_answers(scores, noise, best=0)
    assert mean(ways["router"]) > 0.7
    assert mean(ways["by task"]) < 0.6


def test_luck_is_not_found(generator, noise):
    """Prompts that differ by chance alone: the oracle stands far above all, and nothing else above chance."""
    scores = {task: drawn(generator, np.full((DOCUMENTS, 4), 0.5)) for task in TASKS}
    ways = of_answers(scores, noise, best=0)
    chance = np.mean([each.mean() for each in scores.values()])
    assert mean({task: each.max(1) for task, each in scores.items()}) > chance + 0.35
    for way in ("one prompt", "by task", "router"):
        assert mean(ways[way]) < chance + 0.04


def test_where_there_is_nothing_to_find_little_is_found():
    """The tests keep their level: equal prompts, and texts that say nothing, forty times over."""
    rejected = dict.fromkeys(("one prompt", "by task", "router"), 0)
    for seed in range(40):
        generator = np.random.default_rng(seed)
        scores, texts = {}, {}
        for task in ("a", "b", "c", "d"):
            base = generator.random((60, 1)) < 0.4
            scores[task] = np.where(generator.random((60, 3)) < 0.1, ~base, base).astype(float)
            texts[task] = generator.normal(size=(60, 10))
        ways = of_answers(scores, texts, best=0, seed=seed)
        best = {task: each[None, :, 0] for task, each in scores.items()}
        for way in rejected:
            rejected[way] += _difference(best, ways[way])["p"] < 0.05
    assert all(count <= 4 for count in rejected.values()), rejected


def test_a_document_is_not_chosen_for_by_its_own_answer(noise):
    """Every other document is right behind every other prompt: its own answer would score 1, the others' only half."""
    scores = {task: np.eye(2)[np.arange(DOCUMENTS) % 2] for task in TASKS}
    ways = of_answers(scores, noise, best=0)
    assert all(mean(ways[way]) <= 0.55 for way in ("one prompt", "by task", "router"))


def test_texts_are_embedded_one_as_in_a_batch(open_tiny):
    loaded = open_tiny("llama")
    texts = ["one two", "three four", "a longer text than those", ""]
    found = embed(RepairedModel(loaded), texts, batch_tokens=64)
    for text, row in zip(texts, found, strict=True):
        ids = loaded.tokenizer.encode(text)
        if not ids:
            assert not row.any()
            continue
        hidden = loaded.model.base_model(input_ids=torch.tensor([ids])).last_hidden_state
        assert row == pytest.approx(hidden[0].mean(0).detach().numpy(), abs=1e-5)


def test_a_run(finished_run, capsys, monkeypatch):
    folder, record = finished_run(*IDP)
    main(["choice", f"record={folder}"])
    assert "answers of other documents" in capsys.readouterr().out
    file = folder / "analysis" / "choice.json"
    result = json.loads(file.read_text())
    controls = record["idp"]["controls"]["mean"]
    for way in ("best", "random", "chosen", "oracle"):
        assert result["ways"][way]["mean"] == pytest.approx(controls[way])
    assert result["ways"]["oracle"]["p"] is None and result["documents"] == sum(
        task["documents"] for task in record["idp"]["controls"]["tasks"].values()
    )
    monkeypatch.setattr("idp.analyze.choice.embed", None)  # nothing is computed twice
    file.unlink()
    main(["choice", f"record={folder}"])
    assert json.loads(file.read_text()) == result


def test_a_selector_that_peeks_is_the_oracle(finished_run):
    folder, _ = finished_run(*IDP, "recovery/selector=oracle")
    main(["choice", f"record={folder}"])
    ways = json.loads((folder / "analysis" / "choice.json").read_text())["ways"]
    assert "chosen" not in ways and ways["oracle"]["p"] is None


def test_a_run_with_nothing_to_choose_is_refused(finished_run):
    folder, _ = finished_run("baselines=true")
    with pytest.raises(SystemExit, match="has not measured each prompt of a bank alone"):
        main(["choice", f"record={folder}"])
