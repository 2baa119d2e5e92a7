"""What a compressor would leave dense without a word, or mistake, is refused by name before any work."""

import pytest
import torch
from torch import nn

from idp.compress import experts, external, recipe
from idp.errors import UserError
from idp.models import LoadedModel, ModelSource
from tests.compress.mixtures import MIXTURES, SMALL


def empty(architecture):
    """A model without weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    arguments = {"vocab_size": 257, "pad_token_id": 0, **architecture}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(arguments.pop("model_type"), **arguments))


@pytest.mark.parametrize("name", ["rtn4", "gptq3", "magnitude50", "wanda50", "sparsegpt50_gptq4"])
@pytest.mark.parametrize("family", MIXTURES)
def test_covered_mixtures_pass(family, name, compose):
    model = empty(SMALL | MIXTURES[family])
    recipe.check(compose(f"compressor={name}").compressor, model)
    assert experts.stacked_experts(model)  # as it was


REFUSED = [
    ({"model_type": "gpt_oss", "intermediate_size": 64, "num_local_experts": 4, "head_dim": 16}, "GptOssExperts"),
    ({"model_type": "llama4_text", "intermediate_size": 64, "num_local_experts": 4, "head_dim": 16}, "Llama4TextExp"),
    ({"model_type": "jetmoe", "intermediate_size": 64, "num_local_experts": 4}, r"\[4, .* in a JetMoeParallelExperts"),
    ({"model_type": "jamba", "intermediate_size": 64, "mamba_d_state": 8}, "JambaForCausalLM keeps .*mamba"),
    ({"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4}, "no torch.nn.Linear layers"),
]


@pytest.mark.parametrize(("architecture", "message"), REFUSED)
def test_other_kinds_are_refused_by_every_compressor_and_taken_dense(architecture, message, compose):
    model = empty({**SMALL, **architecture} if architecture["model_type"] != "gpt2" else architecture)
    for name in ("rtn4", "gptq3", "magnitude50", "wanda50", "sparsegpt50_gptq4"):
        with pytest.raises(UserError, match=rf"compressor: (?s:.*){message}(?s:.*)use compressor=none") as refused:
            recipe.check(compose(f"compressor={name}").compressor, model)
        assert "\n" not in str(refused.value)
    assert recipe.check(compose("compressor=none").compressor, model) is None


def test_awq_is_refused_for_mixtures(compose):
    for family in ("mixtral", "qwen3_moe"):
        with pytest.raises(UserError, match="method=awq: .* is a mixture of experts"):
            recipe.check(compose("compressor=awq4").compressor, empty(SMALL | MIXTURES[family]))


def test_a_planted_weight_that_no_compressor_knows_is_found(open_tiny, compose):
    compressor = compose("compressor=rtn4").compressor
    for planted in (nn.Parameter(torch.zeros(3, 4, 5)), nn.Parameter(torch.zeros(4, 5))):
        model = open_tiny("llama").model
        model.model.layers[1].mlp.register_parameter("extra", planted)
        with pytest.raises(UserError, match=r"keeps model\.layers\.1\.mlp\.extra \[.*\] in a LlamaMLP"):
            recipe.check(compressor, model)
    model.model.layers[1].mlp.extra = nn.Parameter(torch.zeros(1, 1, 64))  # a vector
    assert recipe.check(compressor, model)


def test_planted_faults_in_experts_are_found(compose):
    """Another activation, gate and up the other way round, no router."""
    compressor = compose("compressor=rtn4").compressor

    def broken(change):
        model = empty(SMALL | MIXTURES["mixtral"])
        change(model)
        with pytest.raises(UserError) as refused:
            recipe.check(compressor, model)
        return str(refused.value)

    def forward(self, hidden_states, top_k_index, top_k_weights):
        return type(self).__mro__[1].forward.__wrapped__(self, hidden_states.flip(-1), top_k_index, top_k_weights)

    def another_forward(model):
        for layer in model.model.layers:
            kind = type(layer.mlp.experts)
            other = type("OtherExperts", (kind,), {"forward": forward})
            other.forward.__wrapped__ = forward
            layer.mlp.experts.__class__ = other

    def biases(model):
        model.model.layers[1].mlp.experts.register_parameter("bias", nn.Parameter(torch.zeros(4, 64, device="meta")))

    def no_router(model):
        model.model.layers[1].mlp.gate = nn.Identity()

    assert "(model.layers.0.mlp.experts, OtherExperts) are not of the kind" in broken(another_forward)
    assert "(model.layers.1.mlp.experts, MixtralExperts) are not of the kind" in broken(biases)
    assert "nothing beside the experts" in broken(no_router)


def test_an_external_checkpoint_of_a_mixture_is_refused(compose, tmp_path):
    loaded = LoadedModel(empty(SMALL | MIXTURES["mixtral"]), None)
    config = compose("compressor=external", f"compressor.path={tmp_path}")
    with pytest.raises(UserError, match="is a mixture of experts, whose experts are read from no external checkpoint"):
        external.check(config.compressor, ModelSource("folder", tmp_path, {}), config.model, loaded)
