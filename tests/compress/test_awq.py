"""AWQ: where its mappings are known, scales moved by them change nothing; elsewhere it is refused, or stopped."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from idp.compress import recipe
from idp.compress.terminal import quiet
from idp.errors import UserError
from tests.conftest import FAMILIES

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"max_position_embeddings": 256, "vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
GROUPED = {**SIZES, "num_key_value_heads": 2}
OPT = {**{key: value for key, value in FAMILIES["opt"].items() if key != "model_type"}, "vocab_size": 300}


def tiny(model_type: str, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **{**settings})
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(4.0)
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def known() -> list[str]:
    from idp.compress.awq import KNOWN

    return [*KNOWN, "OPTForCausalLM"]


def model_type_of(name: str) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if name == "Gemma3ForCausalLM":
        return "gemma3_text"
    return next(model_type for model_type, each in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if each == name)


@pytest.mark.parametrize("heads", [2, 4])
def test_scales_moved_by_known_mappings_leave_the_logits(heads):
    """Random scales, put into each mapping's layers as AWQ does, in every architecture that it is let loose on."""
    with quiet():
        from llmcompressor.modeling.offset_norm import norm_calibration_context
        from llmcompressor.modifiers.transform.awq import AWQModifier

        from idp.compress.awq import check_architecture, mappings
    ids = torch.randint(1, 250, (2, 48), generator=torch.Generator().manual_seed(0))
    for name in known():
        settings = OPT if name == "OPTForCausalLM" else {**SIZES, "num_key_value_heads": heads, "head_dim": 16}
        model = tiny(model_type_of(name), **settings)
        assert type(model).__name__ == name
        check_architecture(model)
        with quiet(), torch.no_grad(), norm_calibration_context(model):
            before = model(input_ids=ids, use_cache=False).logits
            for layer in recipe.compressed_layers(model).values():
                layer.quantization_scheme = True
            modifier = AWQModifier(mappings=mappings(model))
            modifier._set_resolved_mappings(model)
            assert len(modifier._resolved_mappings) >= 2, name
            for mapping in modifier._resolved_mappings:
                columns = mapping.balance_layers[0].in_features
                scale = torch.exp(0.5 * torch.randn(columns, generator=torch.Generator().manual_seed(1)))
                for layer in mapping.balance_layers:
                    layer.weight.mul_(scale)
                smooth = mapping.smooth_layer
                if smooth.weight.dim() == 1:
                    smooth.weight.div_(scale)
                else:
                    smooth.weight[-columns:].div_(scale[:, None])
                if getattr(smooth, "bias", None) is not None:
                    smooth.bias.div_(scale)
            after = model(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3, msg=f"{name}: its logits change")


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("bitnet", GROUPED),  # a norm between values and output projection
        ("phi", SIZES),
        ("starcoder2", GROUPED),
        ("olmo2", GROUPED),
        ("mixtral", {**GROUPED, "num_local_experts": 2}),
        ("opt", {**OPT, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),  # OPT-350M
        ("opt", {**OPT, "activation_function": "gelu"}),
    ],
)
def test_an_architecture_that_is_not_known_is_refused_before_any_work(model_type, settings, compose):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    name = type(model).__name__
    with pytest.raises(UserError, match=rf"method=awq: .*{name}.* not known.*use gptq or"):
        recipe.check(compose("compressor=awq4").compressor, model)


def test_a_known_class_with_other_layers_is_refused(compose):
    model = tiny("llama", **GROUPED)
    del model.model.layers[1].self_attn.v_proj
    with pytest.raises(UserError, match=r"method=awq: .* does not fit this LlamaForCausalLM"):
        recipe.check(compose("compressor=awq4").compressor, model)


def wrong(*pairs):
    """Mappings in place of the right ones."""

    def planted(monkeypatch):
        with quiet():
            from llmcompressor.modifiers.transform.awq import AWQMapping

            from idp.compress import awq
        monkeypatch.setattr(awq, "mappings", lambda model: [AWQMapping(*pair) for pair in pairs])

    return planted


@pytest.mark.parametrize(
    ("mappings", "message"),
    [
        (
            wrong(("re:.*input_layernorm$", ["re:.*q_proj$", "re:.*k_proj$"])),
            r"scales alone change model\.layers\.0 by",
        ),
        (wrong(("re:.*gate_proj$", ["re:.*down_proj$"])), r"scales alone change model\.layers\.0 by"),
        (wrong(("model.norm", ["re:.*layers.1.mlp.up_proj$"])), r"model\.norm scales layers beyond its own"),
    ],
)
def test_a_wrong_mapping_is_caught(mappings, message, open_tiny, calibration, compose, monkeypatch):
    mappings(monkeypatch)
    model, compressor = open_tiny("llama").model, compose("compressor=awq3").compressor
    with quiet():
        from idp.compress import oneshot

        modifiers = recipe.build(compressor, 64, model)
        with pytest.raises(UserError, match=rf"compressor\.quantization\.method=awq: .*{message}.* use gptq or rtn"):
            oneshot.run(model, modifiers, calibration)


def test_logits_that_change_are_caught(open_tiny, calibration, compose, monkeypatch):
    """A fault outside the layers, which holding each layer to its function does not see."""
    with quiet():
        from idp.compress import awq, oneshot
    smooth = awq.RecordingAWQModifier._apply_smoothing

    def spoil(self, model):
        smooth(self, model)
        model.model.norm.weight.data[:32] *= 1.01

    monkeypatch.setattr(awq.RecordingAWQModifier, "_apply_smoothing", spoil)
    model, compressor = open_tiny("llama").model, compose("compressor=awq3").compressor
    with quiet(), pytest.raises(UserError, match=r"scales alone change the logits by 0\.0\d+ \(allowed in float32"):
        oneshot.run(model, recipe.build(compressor, 64, model), calibration)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("overrides", [[], ["compressor.sparsity.method=wanda", "compressor.sparsity.level=0.5"]])
def test_right_mappings_pass_in_every_dtype(dtype, overrides, open_tiny, calibration, compose):
    with quiet():
        from idp.compress import oneshot
    for family in ("llama", "gemma2", "opt"):
        model = open_tiny(family).model.to(dtype)
        compressor = compose("compressor=awq3", *overrides).compressor
        group_size = recipe.check(compressor, model)
        with quiet():
            oneshot.run(model, recipe.build(compressor, group_size, model), calibration)
