"""Corpora that are made: of questions in the formats in which tasks ask, and by the dense model itself."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from idp import models, pipeline
from idp.corpora.corpus import PARTS, check_blocks, named_corpus, part, refuse_evaluated
from idp.corpora.sources import generated, questions
from idp.errors import UserError
from idp.plan.preflight import preflight


@pytest.fixture(scope="module")
def asked(compose):
    return named_corpus(
        "corpus", compose("corpus=questions", f"corpus.made_from=[{','.join(questions.TASKS)}]").corpus, None
    )


def test_questions_stand_in_every_format(asked):
    documents = set(asked.documents)
    assert asked.fingerprint and len(asked.documents) == len(documents) > 5000
    begin = [
        "Question: Where does a heifer's master live?\nChoices: farm house; barnyard; stockyard; slaughter house; eat"
        " cake\nAnswer: farm house\n\n",
        "Q: Reading newspaper one of many ways to practice your what?\nA: literacy\n\n",
        "Question: When was the last time anyone was on the moon?\nAnswer: 14 December 1972 UTC\n\n",
        "The man turned on the faucet so water flowed from the spout.\n\n",
        "An animal can hunt by cracking open a\nA. claw\nB. house\nC. shell\nD. bone\nAnswer: C. shell\n\n",
        "Kendall opened their mouth to speak and what came out shocked everyone. How would you describe Kendall?\nA. a"
        " very quiet person\nB. a very passive person\nC. a very aggressive and talkative person\nAnswer: C\n\n",
    ]
    for each in begin:
        assert sum(document.startswith(each) for document in documents) == 1, each
    assert any("i shut off the light" not in each and "so I shut off the light" in each for each in documents)
    yes = Counter(each.rsplit("\n", 1)[-1] for each in documents if " -- " in each)
    assert {"Answer: yes", "Answer: no", "A: yes", "A: no"} <= set(yes)


def test_a_run_that_evaluates_one_of_them_is_refused(asked, compose):
    from idp.tasks.tasks import find_tasks

    (task,) = find_tasks(compose("task=custom", "task.names=[boolq]").task)
    with pytest.raises(UserError, match="corpus questions is made from boolq, which this run evaluates"):
        refuse_evaluated(asked, [task])
    nine = find_tasks(compose("task=all").task)  # NQ-open stands in for WebQuestions, where that is not to be had
    refuse_evaluated(named_corpus("corpus", compose("corpus=questions").corpus, None), nine)
    less = compose("corpus=questions", "corpus.made_from=[copa]")
    refuse_evaluated(named_corpus("corpus", less.corpus, None), [task])


def test_questions_of_no_known_task_are_refused(compose):
    with pytest.raises(UserError, match=r"corpus.made_from=\['piqa'\]: source=questions has those of openbookqa"):
        compose("corpus=questions", "corpus.made_from=[copa,piqa]")
    with pytest.raises(UserError, match="name the tasks"):
        compose("corpus=questions", "corpus.made_from=[]")
    assert set(questions.TASKS) - {"nq_open"} == set(compose("corpus=questions").corpus.made_from)


def test_samples_follow_the_model_s_distribution(open_tiny):
    """Of the first two tokens drawn, against their joint distribution by plain passes."""
    loaded = open_tiny("llama")
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight.mul_(6)
        start = generated.begins_with(loaded)
        first = loaded.model(torch.tensor([start])).logits[0, -1].div(0.7).softmax(-1)
        likely = int(first.argmax())
        second = loaded.model(torch.tensor([[*start, likely]])).logits[0, -1].div(0.7)
    lowest = second.topk(5).values[-1]
    found = generated.sample(loaded, 4000, len(start) + 2, 0.7, 5, torch.Generator().manual_seed(1))
    assert found.shape == (4000, len(start) + 2) and torch.equal(found[0, : len(start)], torch.tensor(start))
    follow = found[found[:, -2] == likely, -1]
    assert set(follow.tolist()) <= set((second >= lowest).nonzero()[:, 0].tolist())
    kept = second.masked_fill(second < lowest, -torch.inf).softmax(-1)
    counts = torch.bincount(follow, minlength=len(kept)) / len(follow)
    assert (counts - kept).abs().max() < 4 * (0.25 / len(follow)) ** 0.5
    again = generated.sample(loaded, 4000, len(start) + 2, 0.7, 5, torch.Generator().manual_seed(1))
    assert torch.equal(found, again)


WORDS = ("model=tiny_llama", "model.device=cpu", "task=arc_easy", "task.documents=4", "budget=smoke", "tracker=none")
WORDS += ("corpus=generated", "corpus.tokens=4096", "corpus.length=32", "corpus.rows=16", "recovery=prompt")
WORDS += ("recovery.training.sequence_length=16", "evaluation.perplexity=[corpus]", "evaluation.perplexity_window=16")
WORDS += ("evaluation.perplexity_tokens=64", "baselines=false", "compressor=rtn4", "compressor.calibration.samples=4")
WORDS += ("compressor.calibration.length=16",)


def test_a_run_trains_on_what_its_model_writes(compose, tmp_path):
    config = compose(*WORDS, f"output={tmp_path}")
    plan = preflight(config)
    (step,) = (step for step in plan.steps if step.stage == generated.STAGE)
    assert plan.inputs.corpus.awaited and not step.reused and plan.seconds(step) > 0
    assert not list(Path(config.store).glob("corpus/*"))
    ahead = {step.key for step in plan.steps}

    record, _ = pipeline.run(config)
    assert record["idp"]["perplexity"].keys() == {"generated"}
    (place,) = Path(config.store).glob("corpus/*")
    assert place.name == step.key
    plan = preflight(config)
    assert not plan.inputs.corpus.awaited and all(step.reused for step in plan.steps)
    assert {step.key for step in plan.steps} == ahead, "keys are those from before there was a text"
    text = plan.inputs.corpus
    assert all(part(text, name) for name in PARTS)
    sizes = [len(plan.shape.empty.tokenizer(document)["input_ids"]) for document in text.documents]
    assert 0.5 * 4096 < sum(sizes) < 3 * 4096  # a byte that is no text is written in three


def test_a_killed_one_goes_on(model_folders, compose, tmp_path, monkeypatch):
    config = compose(*WORDS, "model=local", f"model.path={model_folders('llama')}", "model.dtype=float32")
    source, drawn, own = config.corpus, [], generated.sample
    monkeypatch.setattr(generated, "sample", lambda *given: drawn.append(1) or own(*given))
    source.make(config.model, model_folders("llama"), tmp_path / "whole")
    whole = len(drawn)
    assert whole == 8

    def killed(*given):
        if len(drawn) == whole + 3:
            raise KeyboardInterrupt
        drawn.append(1)
        return own(*given)

    monkeypatch.setattr(generated, "sample", killed)
    with pytest.raises(KeyboardInterrupt):
        source.make(config.model, model_folders("llama"), tmp_path / "killed")
    monkeypatch.setattr(generated, "sample", lambda *given: drawn.append(1) or own(*given))
    source.make(config.model, model_folders("llama"), tmp_path / "killed")
    assert len(drawn) == 2 * whole
    both = [json.loads((tmp_path / each / generated.DOCUMENTS).read_text()) for each in ("whole", "killed")]
    assert both[0] == both[1]
    batches = [json.loads(file.read_text()) for file in sorted((tmp_path / "whole" / "checkpoint").iterdir())]
    assert batches[0] != batches[1]


def test_what_cannot_be_is_refused_before_anything_is_written(compose, tmp_path):
    with pytest.raises(UserError, match=r"corpus.length=4096: the model's window is \d+; use \d+ or less"):
        preflight(compose(*WORDS, "corpus.length=4096", f"output={tmp_path}"))
    with pytest.raises(UserError, match=r"of corpus.tokens=100 part calibration will hold 10, 4 blocks of 16 need 64"):
        preflight(compose(*WORDS, "corpus.tokens=100", "compressor=gptq4", f"output={tmp_path}"))
    with pytest.raises(UserError, match="corpus=generated is written by a run's own model"):
        named_corpus("corpus", compose(*WORDS).corpus, None)
    config = compose(*WORDS, f"output={tmp_path}")
    check_blocks(preflight(config).inputs.corpus, "train", None, 16, 100, 0)
    other = compose(*WORDS, "model=tiny_opt", f"output={tmp_path}")
    fingerprints = [preflight(each).inputs.corpus.fingerprint for each in (config, other)]
    assert len(set(fingerprints)) == 2
    assert models.identity(config.model, preflight(config).inputs.source).key


def test_a_file_without_blank_lines_is_one_document_and_that_is_said(tmp_path, compose):
    (tmp_path / "my.txt").write_text("".join(f"The bridge number {n} is long and old.\n" for n in range(900)))
    words = ("model=tiny_llama", "budget=smoke", "compressor=gptq3", "task=arc_easy", "evaluation.perplexity=[]")
    with pytest.raises(
        UserError, match=r"my.txt, one single document: those of a txt file are separated by blank lines"
    ):
        preflight(compose(*words, "corpus=local", f"corpus.path={tmp_path / 'my.txt'}", f"output={tmp_path}"))
