"""Repairs made through the stage itself, on a tiny model and a text with something to learn in it."""

from __future__ import annotations

import random

import pytest

from idp import models
from idp.corpora.corpus import Text
from idp.recover import stage
from idp.store import Store

# Every method that trains, and how its first part is made small.
METHODS = {
    "prompt": ["recovery=prompt", "recovery.length=5"],
    "ptune-mlp": ["recovery=ptune", "recovery.length=5", "recovery.encoder_hidden_size=16"],
    "ptune-lstm": ["recovery=ptune", "recovery.length=5", "recovery.encoder_hidden_size=8", "recovery.encoder=lstm"],
    "prefix": ["recovery=prefix", "recovery.length=5"],
    "prefix-mlp": ["recovery=prefix", "recovery.length=5", "recovery.encoder=mlp", "recovery.encoder_hidden_size=16"],
    "prompt-dense": ["recovery=prompt", "recovery.length=5", "recovery.states=dense", "recovery.sink=keep"],
    "prefix-dense": ["recovery=prefix", "recovery.length=5", "recovery.states=dense", "recovery.sink=keep"],
    "gated_prefix": ["recovery=gated_prefix", "recovery.length=5"],
    "idp": ["recovery=idp", "recovery.lengths=[5,4]"],
    "lora": ["recovery=lora", "recovery.rank=2"],
    "masked_lora": ["recovery=masked_lora", "recovery.rank=2"],
    "norms": ["recovery=norms"],
    "lora_idp": ["recovery=lora_idp", "recovery.lengths=[5,4]", "recovery.lora.rank=2"],
}
UNTRAINED = ("hard_prompt", "intactkv")
SMALL = {
    "steps": 6,
    "batch_size": 2,
    "sequence_length": 24,
    "warmup_steps": 1,
    "evaluate_every": 2,
    "heldout_sequences": 4,
    "checkpoint_every": 2,
    "objective": "lm",
    "teacher": "auto",
}


@pytest.fixture(scope="session")
def text():
    """Documents of one small grammar."""
    draw = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta"]
    documents = [f"{number}: " + " and ".join(draw.choices(words, k=12)) for number in range(80)]
    return Text("grammar", documents, "grammar", (), None)


@pytest.fixture
def compose(compose):
    """As everywhere, but for repairs that are trained on the text, unless a test says otherwise."""
    return lambda *words: compose("budget.objective=lm", "budget.teacher=auto", *words)


@pytest.fixture
def small(compose):
    """`small(method, *overrides)`: the recovery of a method with a short training, as the config gives it."""

    def config(method: str, *overrides: str):
        wanted = list(METHODS.get(method, [f"recovery={method}"]))
        trained = () if method in UNTRAINED else ("recovery",)
        for place in ("recovery", "recovery.lora") if method == "lora_idp" else trained:
            wanted += [f"{place}.training.{name}={value}" for name, value in SMALL.items()]
        return compose("model=tiny_llama", *wanted, *overrides)

    return config


@pytest.fixture
def recovered(small, text, tmp_path):
    """`recovered(method, *overrides, store=, report=, seed=)`: the repair, of the dense model, as a product."""

    def make(method: str, *overrides: str, store: str = "store", report=None, seed: int = 0):
        config = small(method, *overrides)
        root = Store(tmp_path / store)
        dense = models.load(config.model, models.find_model(config.model), root)
        repair = stage.recover(config.recovery, config.model, dense, text, seed, root, report, dense=dense)
        return config, dense, repair

    return make
