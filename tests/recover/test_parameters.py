"""Numbers trained and added, against the formulas at the papers' scale (models without weights)."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from idp import models
from idp.config import Claims, conf_dir
from idp.prompting.shapes import prefix_width
from idp.recover.lora import adapt

SHAPES = {
    "llama_7b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "opt_6.7b": {
        "model_type": "opt",
        "hidden_size": 4096,
        "word_embed_proj_dim": 4096,
        "ffn_dim": 16384,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}


@pytest.fixture(params=SHAPES)
def empty(request):
    shape = dict(SHAPES[request.param])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.pop("model_type"), **shape))
    return models.LoadedModel(model, None)


@pytest.mark.parametrize(("length", "expected"), [(25, 102_400), (50, 204_800), (100, 409_600)])
def test_a_prompt_adds_its_tokens(length, expected, empty):
    assert length * empty.model.get_input_embeddings().weight.shape[1] == expected


def test_a_prefix_adds_keys_and_values_of_every_layer(empty):
    assert 25 * prefix_width(empty.model.config) == 25 * 2 * 32 * 4096 == 6_553_600


@pytest.mark.parametrize("rank", [1, 8])
def test_lora_on_queries_and_values(rank, empty, compose):
    options = compose("recovery=lora", f"recovery.rank={rank}").recovery
    with torch.device("meta"):
        adapted = adapt(empty, options)
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert trained == rank * 524_288
    if rank == 8:
        assert trained / (50 * 4096) == pytest.approx(20.48)  # a prompt of 50 tokens is at least 20 times smaller


def test_norms_and_scales_as_their_pages_say(empty, compose):
    llama = empty.model.config.model_type == "llama"
    # Per layer two norms; OPT has a bias with each, and those of q, k, v, out, fc1 (4 x 4096) and fc2.
    expected = (2 * 32 + 1) * 4096 if llama else (2 * (2 * 32 + 1) + 32 * 9) * 4096
    assert compose("recovery=norms").recovery.numbers(empty) == expected == (266_240 if llama else 1_712_128)
    scales = compose("recovery=scales").recovery
    rows = 32 * (5 * 4096 + 2 * 11008) if llama else 32 * (5 * 4096 + 16384)
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008) if llama else 32 * 12 * 4096**2
    for size, count in ((-1, rows), (128, weights // 128)):
        assert scales.numbers(replace(empty, grid=Claims(bits=4, group_size=size))) == count
    assert not llama or (rows, weights // 128) == (1_359_872, 50_593_792)


def test_small_counts_by_method(recovered):
    """What the record says: trained numbers, and those that are kept."""
    width, kv, layers = 64, 32, 2
    lora = layers * 2 * ((width + width) + (width + kv))
    every = layers * 2 * (2 * (width + width) + 2 * (width + kv) + 3 * (width + 128))
    mlp = (width * 16 + 16) + (16 * 16 + 16) + (16 * width + width)
    h = 8
    lstm = 2 * (4 * h * (width + h) + 8 * h) + 2 * (4 * h * (2 * h + h) + 8 * h)
    lstm += (2 * h * 2 * h + 2 * h) + (2 * h * width + width)
    prefix = 5 * 2 * layers * kv
    expected = {
        "prompt": (5 * width, 5 * width),
        "ptune-mlp": (5 * width + mlp, 5 * width),
        "ptune-lstm": (5 * width + lstm, 5 * width),
        "prefix": (prefix, prefix),
        "prefix-mlp": (5 * width + (width * 16 + 16) + (16 + 1) * prefix // 5, prefix),
        "idp": (9 * width, 9 * width),
        "lora": (lora, lora),
        "masked_lora": (every, every),
        "norms": (5 * width, 5 * width),
        "lora_idp": (lora + 9 * width, lora + 9 * width),
    }
    for method, (trainable, added) in expected.items():
        _, _, repair = recovered(method)
        found = repair.read("repair.json")
        assert (found["trainable"], found["added"]) == (trainable, added), method


def test_idp_adds_nothing_beyond_its_prompts(compose, recovered):
    _, _, repair = recovered("idp", "recovery.lengths=[3,4,5]")
    assert repair.read("repair.json") == {
        "kind": "idp",
        "added": 12 * 64,
        "trainable": 12 * 64,
        "bytes": 4 * 12 * 64,
    }
    assert (conf_dir() / "recovery" / "idp.yaml").is_file()
