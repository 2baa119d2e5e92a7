"""`idp.repair`: a repair of a model in memory, the same as the run's of the same words."""

import copy
import gc
import random
from pathlib import Path

import pytest
import torch

import idp
from idp import repairing
from idp.errors import UserError
from idp.repairing import repair

WORDS = ["the", "bridge", "river", "repairs", "old", "new", "stone", "over", "builds", "two", "seven", "and"]


@pytest.fixture(scope="module")
def documents():
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=60)) for _ in range(300)]


@pytest.fixture(scope="module")
def models(open_tiny):
    """A tiny model and what is left of it when its weights are rounded, with their tokenizer."""
    dense = open_tiny("llama")
    rounded = copy.deepcopy(dense.model)
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            if parameter.dim() == 2 and "layers" in name:
                step = parameter.abs().amax(1, keepdim=True) / 1.5
                parameter.copy_((parameter / step).round() * step)
    return dense.model, rounded, dense.tokenizer


def error_of(model, dense, inputs):
    with torch.no_grad():
        return float((model(inputs).logits - dense(inputs).logits).pow(2).mean())


def test_a_repair_that_trains_nothing(models, documents, tmp_path):
    dense, rounded, tokenizer = models
    before = {name: tensor.clone() for name, tensor in rounded.state_dict().items()}
    repaired = repair(rounded, tokenizer, dense=dense, method="lowrank", text=documents, rank=8, budget="smoke")
    assert isinstance(repaired, idp.language_model.LanguageModel) and repaired.variant == "repaired"
    assert repaired.added > 0 and repaired.trained == 0
    inputs = torch.tensor([tokenizer.encode(" ".join(WORDS))])
    assert error_of(repaired.model, dense, inputs) < 0.9 * error_of(rounded, dense, inputs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in rounded.state_dict().items())
    (answer,) = repaired.generate(["the bridge"], 5)
    assert answer.prompt is None

    from peft import PeftModel

    place = repaired.save(tmp_path / "mine")
    theirs = PeftModel.from_pretrained(copy.deepcopy(rounded), place / "adapter")
    with torch.no_grad():
        assert torch.allclose(theirs(inputs).logits, repaired.model(inputs).logits, atol=1e-5)
    with pytest.raises(UserError, match="there is something already"):
        repaired.save(tmp_path / "mine")


def test_it_is_the_run_s_own(models, documents, tmp_path, run_here):
    """The same words in a run over the same checkpoint find the repair in the store, under the same key."""
    dense, rounded, tokenizer = models
    for name, model in (("dense", dense), ("rounded", rounded)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    folders, text, store = (tmp_path / "rounded", tmp_path / "dense"), tmp_path / "text.txt", tmp_path / "store"
    made = repair(
        folders[0], dense=folders[1], method="lora", text=text, rank=2, training={"steps": 2}, store=store,
        budget="smoke", overrides=["model.dtype=float32", "model.device=cpu"],
    )  # fmt: skip
    record = run_here(
        f"model={folders[1]}", "model.dtype=float32", "model.device=cpu", "compressor=external",
        f"compressor.path={folders[0]}", "recovery=lora", "recovery.rank=2", "recovery.training.steps=2",
        "corpus=local", f"corpus.path={text}", "budget=smoke", "task=arc_easy", "tracker=none", "baselines=false",
        "evaluation.perplexity=[]", f"store={store}",
    )  # fmt: skip
    stages = record["idp"]["stages"]
    assert stages["recover"]["reused"] and stages["recover"]["key"] == made._made.repair.key
    assert made.added == record["idp"]["parameters"]["added"] and made.trained > 0


def test_a_bank_of_prompts_of_text_alone(models, documents, tmp_path):
    _, rounded, tokenizer = models
    options = {"lengths": [3, 4], "training": {"steps": 2, "objective": "lm"}, "budget": "smoke"}
    repaired = repair(rounded, tokenizer, method="idp", text=documents, **options)
    assert len(repaired.prompts) == 2 and [len(prompt) for prompt in repaired.bank.prompts] == [3, 4]
    assert repaired.generate(["the bridge"], 4)[0].prompt in repaired.prompts
    folder = Path(repaired._made.kept.name)
    saved = repaired.save(tmp_path / "mine")
    assert len(list(saved.glob("bank/prompt_*/adapter_config.json"))) == 2
    del repaired
    gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "lowrnk"}, "method=lowrnk: no such option; did you mean method=lowrank"),
        ({"method": "none"}, "method=none: makes no repair"),
        ({"rnk": 3}, r"rnk: method=lowrank has no such option; did you mean rank\? \(it has damping, "),
        ({"rank": "few"}, "rank"),
        ({"rank": 33}, "recovery.rank=33: model.layers.0.self_attn.k_proj is 32 x 64"),
        ({"budget": "tiny"}, "budget=tiny: no such option"),
        ({"dense": None}, "method=lowrank: it learns from the model that was compressed; give that as dense="),
        ({"dense": "/nowhere"}, "dense=/nowhere: no such folder"),
        ({"model": 3}, "model: give a model of transformers or its folder, not int"),
        ({"tokenizer": None}, r"tokenizer: give the model's, not None \(NoneType\)"),
        ({"text": []}, "text is empty: give at least one text"),
        ({"text": ["a", 3]}, r"text\[1\] is not a text: 3"),
        ({"text": "/nowhere.txt"}, "text: no such file: '/nowhere.txt'"),
        ({"text": ["short"]}, "corpus given"),
        ({"overrides": ["recovery.rnk=3"]}, "recovery.rnk: there is no such option"),
        (
            {"method": "lora", "training": {"stps": 3}},
            "training.stps: method=lora has no such option; did you mean st",
        ),
    ],
)
def test_one_line_for_each_mistake(given, message, models, documents):
    dense, rounded, tokenizer = models
    words = {"model": rounded, "tokenizer": tokenizer, "dense": dense, "text": documents, "budget": "smoke"} | given
    with pytest.raises(UserError, match=message) as stopped:
        repair(words.pop("model"), words.pop("tokenizer"), **words)
    assert "\n" not in str(stopped.value)


def test_a_dtype_that_no_run_has(models, documents):
    dense, rounded, tokenizer = models
    with pytest.raises(UserError, match="model: its dtype is float64; bring it to one of float32"):
        repair(copy.deepcopy(rounded).double(), tokenizer, dense=dense, text=documents)
    assert repairing._as_it_is(copy.deepcopy(rounded).bfloat16())["dtype"] == "bfloat16"
