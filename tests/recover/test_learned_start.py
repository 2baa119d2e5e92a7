"""Training that goes on from a prompt that was learned before."""

import json
import shutil

import pytest
import torch

import idp
from idp.errors import UserError
from idp.prompting.bank import PromptBank

TINY = (
    "model=tiny_llama",
    "budget=smoke",
    "tracker=none",
    "task=arc_easy",
    "evaluation.perplexity=[]",
    "baselines=false",
    "compressor=rtn3",
)
STILL = ("recovery.training.learning_rate=0", "recovery.init=learned")


@pytest.fixture
def learned(run_here, tmp_path):
    """The run's folder, its repair's, and the prompt of four tokens."""
    record = run_here(*TINY, "recovery=prompt", "recovery.length=4")
    repair = repair_of(record, tmp_path)
    (prompt,) = PromptBank.load(repair / "bank").prompts
    return tmp_path / "outputs" / "runs" / record["idp"]["name"], repair, prompt


def repair_of(record, tmp_path):
    return tmp_path / "outputs" / "store" / "recover" / record["idp"]["stages"]["recover"]["key"]


@pytest.mark.parametrize("place", ["run", "record", "repair", "bank", "adapter"])
def test_it_starts_as_that_prompt_wherever_it_lies(place, learned, run_here, tmp_path):
    run, repair, prompt = learned
    named = {
        "run": run,
        "record": run / "record.json",
        "repair": repair,
        "bank": repair / "bank",
        "adapter": repair / "bank" / "prompt_0",
    }[place]
    record = run_here(*TINY, "recovery=prompt", "recovery.length=4", *STILL, f"recovery.init_from={named}")
    (found,) = PromptBank.load(repair_of(record, tmp_path) / "bank").prompts
    assert torch.equal(found, prompt)


def test_every_prompt_of_a_bank_starts_there_and_learns(learned, run_here, tmp_path):
    run, _, prompt = learned
    bank = ("recovery=idp", "recovery.lengths=[4,4]", "recovery.controls=false", f"recovery.init_from={run}")
    still = PromptBank.load(repair_of(run_here(*TINY, *bank, *STILL), tmp_path) / "bank").prompts
    assert all(torch.equal(each, prompt) for each in still)
    trained = PromptBank.load(repair_of(run_here(*TINY, *bank, STILL[1]), tmp_path) / "bank").prompts
    assert not torch.equal(trained[0], prompt) and not torch.equal(trained[0], trained[1])


def test_a_prefix_starts_as_the_prompts_keys_and_values(learned, run_here, tmp_path):
    run, _, _ = learned
    record = run_here(*TINY, "recovery=prefix", "recovery.length=4", *STILL, f"recovery.init_from={run}")
    place = tmp_path / "outputs" / "runs" / record["idp"]["name"]
    texts = ["The bridge is open."], [[" today", " at night"]]
    ours, theirs = (idp.load(each).score(*texts)[0].loglikelihoods for each in (place, run))
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_the_key_is_the_prompts_content(learned, run_here, tmp_path):
    run, repair, _ = learned
    shutil.copytree(repair / "bank" / "prompt_0", tmp_path / "elsewhere")
    base = (*TINY, "recovery=prompt", "recovery.length=4", "recovery.init=learned")
    one = run_here(*base, f"recovery.init_from={run}")["idp"]["stages"]["recover"]
    other = run_here(*base, f"recovery.init_from={tmp_path / 'elsewhere'}")["idp"]["stages"]["recover"]
    assert other["reused"] and other["key"] == one["key"]


def test_what_cannot_be_started_from_is_said_beforehand(learned, run_here, tmp_path, make_bank, open_tiny):
    run, _, _ = learned
    base = (*TINY, "recovery=prompt", "recovery.length=4")
    with pytest.raises(UserError, match=r"recovery.init=learned: say which prompt it starts from"):
        run_here(*base, "recovery.init=learned")
    with pytest.raises(UserError, match=r"recovery.init_from=.*: training starts from it with recovery.init=learned"):
        run_here(*base, f"recovery.init_from={run}")
    with pytest.raises(UserError, match=r"that prompt has 4 tokens, and 5 were asked for"):
        run_here(*TINY, "recovery=prompt", "recovery.length=5", "recovery.init=learned", f"recovery.init_from={run}")
    with pytest.raises(UserError, match=r"recovery.init_from=.*nowhere: no such file or folder"):
        run_here(*base, "recovery.init=learned", f"recovery.init_from={tmp_path / 'nowhere'}")
    loaded = open_tiny("llama")
    make_bank(loaded, [4, 4]).save(tmp_path / "two", loaded.model.config, "mine")
    with pytest.raises(UserError, match=r"it holds 2 prompts \(.*\); name the folder of one"):
        run_here(*base, "recovery.init=learned", f"recovery.init_from={tmp_path / 'two'}")


@pytest.mark.parametrize(
    "recovery",
    [
        ("recovery=prompt", "recovery.length=4", "recovery.init=learned", "recovery.init_from={}"),
        ("recovery=idp", "recovery/bank=assembled", "recovery.bank.from=[{}]"),
    ],
)
def test_text_that_was_trained_on_is_not_evaluated(recovery, learned, run_here):
    run, _, _ = learned
    values = json.loads((run / "record.json").read_text())
    values["idp"]["config"]["corpus"]["made_from"] = ["arc_easy"]
    (run / "record.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="trained on corpus bridges, which is made from arc_easy, which this run"):
        run_here(*TINY, *(word.format(run) for word in recovery))


def test_text_of_the_prompt_before_counts_as_well(learned, run_here, tmp_path, caplog):
    run, _, _ = learned
    on = ("recovery=prompt", "recovery.length=4", "recovery.init=learned")
    second = run_here(*TINY, *on, f"recovery.init_from={run}")
    second = tmp_path / "outputs" / "runs" / second["idp"]["name"]
    values = json.loads((run / "record.json").read_text())
    values["idp"]["config"]["corpus"]["made_from"] = ["arc_easy"]
    (run / "record.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="trained on corpus bridges, which is made from arc_easy, which this run"):
        run_here(*TINY, *on, f"recovery.init_from={second}")
    with pytest.raises(UserError, match="recovery.from=.*trained on corpus bridges, which is made from arc_easy"):
        run_here(*TINY, "recovery=transfer", f"recovery.from={second}")
    run.rename(run.with_name("gone"))
    run_here(*TINY, *on, f"recovery.init_from={second}")
    assert f"it goes on from {run}, which is no run that can be read" in caplog.text
