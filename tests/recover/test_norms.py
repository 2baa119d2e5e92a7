"""Norms and biases alone are trained: which those are, what it counts, and gradients that hold with checkpointing."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from idp import models
from idp.errors import UserError
from idp.models import LoadedModel
from idp.recover import opening, values
from idp.recover.norms import is_norm, vectors
from idp.recover.objective import text_loss

from ..families import FAMILIES

TOKENS = torch.tensor([[3, 4, 5, 6, 90, 17, 40, 41], [9, 8, 7, 6, 5, 4, 3, 2]])
# Of two layers: weights of norms, and biases of linear layers and norms, in numbers of hidden size 64 where not said.
COUNTS = {
    "llama": ((2 * 2 + 1) * 64, 0),
    "opt": (
        (2 * 2 + 1) * 64,
        2 * (4 * 64 + 128 + 64 + 2 * 64) + 64,
    ),  # q, k, v, out, fc1 (128), fc2, two norms; the last
    "gpt2": (
        (2 * 2 + 1) * 64,
        2 * (3 * 64 + 64 + 4 * 64 + 64 + 2 * 64) + 64,
    ),  # c_attn, c_proj, c_fc, c_proj, two norms
    "qwen2": ((2 * 2 + 1) * 64, 2 * (64 + 32 + 32)),  # queries, and keys and values of half the heads
    "qwen3": ((2 * 2 + 1) * 64 + 2 * 2 * 16, 0),  # queries and keys are normalised head by head
    "gemma2": ((2 * 4 + 1) * 64, 0),
    "gemma3_text": ((2 * 4 + 1) * 64 + 2 * 2 * 16, 0),
}


def empty(family):
    shape = dict(FAMILIES[family])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.pop("model_type"), **shape))
    return LoadedModel(model, None, ())


@pytest.mark.parametrize("family", COUNTS)
def test_counts_by_hand(family, compose):
    norms, biases = COUNTS[family]
    found = empty(family)
    wanted = {"norms": norms, "biases": biases, "both": norms + biases}
    for train, count in wanted.items():
        assert compose("recovery=norms", f"recovery.train={train}").recovery.numbers(found) == count, train
    names = vectors(found.model)
    assert len(set(names)) == len(names) and set(names) <= {name for name, _ in found.model.named_parameters()}
    assert set(vectors(found.model, "norms")) | set(vectors(found.model, "biases")) == set(names)


def test_what_is_tied_counts_once_and_the_head_s_bias_is_not_among_them():
    """The loss reads the head as frozen: a bias of it would get no gradient."""

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.LayerNorm(4), nn.LayerNorm(4), nn.Linear(4, 9)
            self.second.weight = self.first.weight
            self.convolution, self.scale = nn.Conv1d(4, 4, 1), nn.PReLU(4)  # 1-D parameters of neither kind

        def get_output_embeddings(self):
            return self.head

    assert vectors(Tiny()) == ["first.weight", "first.bias", "second.bias"]
    assert is_norm(nn.RMSNorm(3)) and not is_norm(nn.Linear(3, 3))


def test_a_model_that_has_none_is_refused(compose):
    biases = compose("recovery=norms", "recovery.train=biases").recovery
    with pytest.raises(
        UserError, match=r"^recovery.train=biases: LlamaForCausalLM has no biases .*; use recovery.train=norms$"
    ):
        biases.check_model(empty("llama"))
    biases.check_model(empty("opt"))
    bare = empty("llama")
    for module in bare.model.modules():
        if is_norm(module):
            module.register_parameter("weight", None)
    with pytest.raises(
        UserError, match=r"recovery.train=both: .* no weights of norms and no biases; use another recovery$"
    ):
        compose("recovery=norms").recovery.check_model(bare)


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
def test_the_gradient_is_the_plain_one_with_checkpointing_too(family, open_tiny, compose):
    """Against torch's own backward pass with those parameters set to require a gradient."""
    loaded = open_tiny(family)
    names = vectors(loaded.model)
    for name in names:
        loaded.model.get_parameter(name).requires_grad_(True)
    logits = loaded.model(TOKENS).logits[:, :-1].flatten(0, 1)
    nn.functional.cross_entropy(logits, TOKENS[:, 1:].flatten()).backward()
    expected = {name: loaded.model.get_parameter(name).grad for name in names}
    found = {}
    for checkpointing in ("null", "true"):
        again = open_tiny(family)
        options = compose("recovery=norms", f"recovery.training.checkpointing={checkpointing}").recovery.training
        places = values._places(again.model, names)
        # Values other than the model's own: a layer that is computed anew must not be computed with those.
        trained = {name: nn.Parameter(again.model.get_parameter(name).detach() + 0.0) for name in names}
        for name in names:
            again.model.get_parameter(name).detach().mul_(0.5)
        loss = text_loss(again, options, None)
        with values._in_place_of(places, trained):
            lowered = loss.of(TOKENS)
        lowered.backward()
        found[checkpointing] = {name: value.grad for name, value in trained.items()}
        assert all(again.model.get_parameter(name).grad is None for name in names)
    for name in names:
        assert torch.equal(found["null"][name], found["true"][name]), name
        torch.testing.assert_close(found["true"][name], expected[name], atol=1e-5, rtol=1e-4)
        assert expected[name].abs().max() > 0


def test_it_is_trained_alone_and_put_back(recovered):
    config, dense, repair = recovered(
        "norms",
        "recovery.training.steps=30",
        "recovery.training.learning_rate=0.01",
        "recovery.training.checkpointing=true",
    )
    about, [history] = repair.read("repair.json"), repair.read("history.json").values()
    assert about == {"kind": "norms", "added": 320, "trainable": 320, "bytes": 4 * 320}
    assert history["best_loss"] < history["heldout"][0]["loss"] - 0.01
    plain = models.open_model(models.model_folder(dense), config.model).model
    repaired = opening.open_repaired(config.model, dense, repair, config.recovery).model
    changed = {name for name, value in repaired.named_parameters() if not torch.equal(value, plain.get_parameter(name))}
    assert changed == set(vectors(plain))
    assert next(iter(vectors(plain))) == "model.layers.0.input_layernorm.weight"
