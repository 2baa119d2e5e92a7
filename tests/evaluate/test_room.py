"""Tokens per forward pass where the user does not say: what keeps a card busy, if it fits, and the same every time."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

from idp import models
from idp.evaluate import room
from idp.evaluate.benchmark import conditions
from idp.models import LoadedModel
from idp.prompting.attention import fused

GIB = 2**30
SHAPES = {  # hidden, inner, layers, heads, kv_heads, and weights
    "smollm2_135m_instruct": (576, 1536, 30, 9, 3, 134_515_008),
    "llama32_1b": (2048, 8192, 16, 32, 8, 1_235_814_400),
    "llama_7b": (4096, 11008, 32, 32, 32, 6_738_415_616),
    "llama_13b": (5120, 13824, 40, 40, 40, 13_015_864_320),
}


def shape(name):
    hidden, inner, layers, heads, kv_heads, weights = SHAPES[name]
    config = AutoConfig.for_model(
        "llama",
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
    )
    return config, weights


@pytest.mark.parametrize(
    ("name", "gib", "tokens"),
    [
        ("smollm2_135m_instruct", 24, 2**15),
        ("smollm2_135m_instruct", 8, 2**14),
        ("llama32_1b", 24, 2**14),
        ("llama32_1b", 80, 2**14),
        ("llama_7b", 24, 2**12),
        ("llama_7b", 80, 2**12),
        ("llama_13b", 24, 2**12),  # does not fit at all: loading says so
    ],
)
def test_small_models_take_more_tokens_as_the_card_allows(name, gib, tokens):
    assert room.fitting(*shape(name), 2, gib * GIB) == tokens


def given(monkeypatch, memory, batch_tokens=None, device_map=None):
    config, weights = shape("smollm2_135m_instruct")
    monkeypatch.setattr(models, "device_of", lambda model: torch.device("cuda"))
    monkeypatch.setattr(models, "dtype_of", lambda model: torch.bfloat16)
    monkeypatch.setattr(room, "card_bytes", lambda device: memory)
    empty = SimpleNamespace(config=config, parameters=lambda: [torch.empty(weights, device="meta")])
    evaluation = SimpleNamespace(batch_tokens=batch_tokens)
    return room.batch_tokens(SimpleNamespace(device_map=device_map), evaluation, LoadedModel(empty, None))


def test_what_the_user_says_holds_and_a_cpu_keeps_what_it_had(monkeypatch):
    assert given(monkeypatch, 24 * GIB) == 2**15
    assert given(monkeypatch, 24 * GIB, batch_tokens=600) == 600
    assert given(monkeypatch, 24 * GIB, device_map="auto") == 4096
    assert given(monkeypatch, None) == 4096
    assert room.card_bytes(torch.device("cpu")) is None


def test_only_the_numbers_of_fused_attention_have_it_in_their_key(monkeypatch):
    model = SimpleNamespace(device="cpu", dtype="float32", device_map=None)
    evaluation = SimpleNamespace(batch_tokens=4096)
    known = {"selector": None, "dtype": "float32", "device": "cpu", "batch_tokens": 4096}
    assert conditions(None, model, evaluation) == known
    monkeypatch.setattr(fused, "in_use", lambda device, dtype: True)
    assert conditions(None, model, evaluation) == known | {"attention": "fused"}
