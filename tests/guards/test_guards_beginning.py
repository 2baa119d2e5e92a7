"""Tokenizers with neither a BOS nor an EOS, and models whose option asks for what their tokenizer lacks."""

import pytest
import torch

from idp import models
from idp.api import LanguageModel
from idp.corpora.corpus import Text, blocks
from idp.errors import UserError
from idp.evaluate.engine import LocalEngine
from idp.evaluate.perplexity import window_losses
from idp.evaluate.scorer import Scorer
from idp.models import LoadedModel
from idp.prompting.repaired import RepairedModel

from ..evaluate.test_scorer import instance


@pytest.fixture
def bare(open_tiny):
    """A tiny model whose tokenizer has no special token at all."""
    loaded = open_tiny("llama")
    tokenizer = loaded.tokenizer
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.pad_token = None
    assert tokenizer.bos_token_id is None and tokenizer.eos_token_id is None
    return LoadedModel(loaded.model, tokenizer)


def test_what_needs_neither_works(bare, open_tiny):
    text = Text("two", ["one two", "three four"] * 4, "", (), ["one two", "three four"])
    found = blocks(text, "perplexity", bare.tokenizer, 17, 1, 0)
    assert bare.tokenizer.decode(found[0]) == "one twothree four"  # documents with nothing between them
    scorer = Scorer(LocalEngine(RepairedModel(bare)), 200)
    usual = Scorer(LocalEngine(RepairedModel(open_tiny("llama"))), 200)
    requests = [instance("loglikelihood", ("the sun", " rises"), 0)]
    assert scorer.loglikelihood(requests, True) == usual.loglikelihood(requests, True)
    assert window_losses(scorer, found) == window_losses(usual, found)
    asks = [instance("generate_until", ("the sun", {"until": ["zz"], "max_gen_toks": 4}), 0)]
    answer = scorer.generate_until(asks, True)[0]
    with torch.no_grad():
        ids = bare.tokenizer("the sun", return_tensors="pt")["input_ids"]
        for _ in range(4):
            ids = torch.cat([ids, bare.model(ids).logits[:, -1].argmax(-1)[None]], dim=1)
    assert answer == bare.tokenizer.decode(ids[0, 7:])


def test_an_empty_context_is_refused(bare, monkeypatch):
    engine = LocalEngine(RepairedModel(bare))
    monkeypatch.setattr(engine, "score", lambda *_: pytest.fail("the model ran"))
    monkeypatch.setattr(engine, "generate", lambda *_: pytest.fail("the model ran"))
    scorer = Scorer(engine, 200)
    for kind, arguments in {
        "loglikelihood": ("", " rises"),
        "loglikelihood_rolling": ("the sun",),
        "generate_until": ("", {"until": ["."], "max_gen_toks": 3}),
    }.items():
        with pytest.raises(UserError, match="neither a BOS nor an EOS token"):
            getattr(scorer, kind)([instance(kind, arguments, 0)], True)
    with pytest.raises(UserError, match="neither a BOS nor an EOS token"):
        LanguageModel(RepairedModel(bare), 200).perplexity(["the sun"])


def test_always_needs_one(model_folders, compose, tmp_path):
    """In one line, before any weight is read."""
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(model_folders("llama"), folder)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = None
    tokenizer.save_pretrained(folder)
    config = compose("model=local", f"model.path={folder}", "model.bos=always").model
    with pytest.raises(UserError, match="model.bos=always: the model's tokenizer has no BOS token"):
        models.open_empty(folder, config)
