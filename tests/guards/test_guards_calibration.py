"""Planted faults in calibration: each must stop the run before any weight is changed, and a right model must pass."""

import pytest
import torch

from idp.compress import guard, recipe
from idp.compress.forward import LayeredForward, decoder_layers
from idp.compress.terminal import quiet
from idp.errors import UserError


@pytest.fixture
def calibration():
    """Token ids [8, 32]."""
    return torch.randint(1, 250, (8, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def calibrate(open_tiny, calibration, compose):
    """`calibrate(family, compressor)`: compresses a tiny model, prepared by `change`; the model."""

    def calibrated(family="llama", name="wanda50", change=lambda model: None, inputs=calibration):
        model = open_tiny(family).model
        change(model)
        compressor = compose(f"compressor={name}").compressor
        group_size = recipe.check(compressor, model)  # outside `quiet`, which does not nest
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        with quiet():
            from idp.compress import oneshot
            from idp.compress.dead import DeadInputs

            watching = oneshot.Watching().of({name: DeadInputs() for name in recipe.compressed_layers(model)})
            try:
                oneshot.run(model, [watching, *recipe.build(compressor, group_size, model)], inputs)
            except UserError:
                calibrated.untouched = all(torch.equal(before[key], model.state_dict()[key]) for key in before)
                raise
        return model

    return calibrated


@pytest.fixture
def plant(monkeypatch):
    """`plant(layer, **arguments)`: calibration calls that layer with other arguments than the model does."""

    def planted(layer, **arguments):
        calls = LayeredForward.calls

        def spoilt(self, input_ids):
            hidden, right = calls(self, input_ids)
            positional, named = right[layer]
            wrong = {name: change(named[name]) for name, change in arguments.items()}
            right[layer] = positional, {**named, **wrong}
            return hidden, right

        monkeypatch.setattr(LayeredForward, "calls", spoilt)

    return planted


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3_text", "qwen3", "opt"])
def test_a_right_model_passes(family, calibrate):
    assert all(torch.isfinite(tensor).all() for tensor in calibrate(family).state_dict().values())


@pytest.mark.parametrize(
    ("layer", "where"),
    [(0, r"model\.layers\.1 would be calibrated on inputs"), (1, r"model\.layers\.1 would .* outputs")],
)
@pytest.mark.parametrize("name", ["wanda50", "gptq4"])
def test_an_unmasked_layer_is_caught(layer, where, name, plant, calibrate):
    plant(layer, attention_mask=lambda mask: None)
    with pytest.raises(
        UserError, match=rf"LlamaForCausalLM: {where} that are \S+ away .* use compressor\.quantization\.method=rtn"
    ):
        calibrate("llama", name)
    assert calibrate.untouched


def test_a_lost_window_is_caught(plant, calibrate):
    """Of the 32 tokens of a block only the last 8 are behind the window of 24."""
    plant(0, attention_mask=lambda mask: torch.full_like(mask, torch.finfo(mask.dtype).min).triu(1))
    with pytest.raises(UserError, match=r"MistralForCausalLM: model\.layers\.1 would be calibrated on inputs"):
        calibrate("mistral")
    assert calibrate.untouched


def test_wrong_positions_are_caught(plant, calibrate):
    plant(0, position_embeddings=lambda pair: tuple(part.flip(1) for part in pair))
    with pytest.raises(UserError, match=r"model\.layers\.1 would be calibrated on inputs that are"):
        calibrate("llama")
    assert calibrate.untouched


def test_the_other_kind_of_mask_is_caught(plant, calibrate):
    """Gemma-2's first layer has a window, its second has none."""
    plant(1, attention_mask=lambda mask: mask.masked_fill(torch.ones_like(mask, dtype=torch.bool).tril(-24), -1e38))
    with pytest.raises(UserError, match=r"Gemma2ForCausalLM: model\.layers\.1 would be calibrated with outputs"):
        calibrate("gemma2")


def test_wrong_hidden_states_are_caught(monkeypatch, calibrate):
    calls = LayeredForward.calls
    monkeypatch.setattr(LayeredForward, "calls", lambda self, ids: (calls(self, ids)[0] * 1.01, calls(self, ids)[1]))
    with pytest.raises(UserError, match=r"model\.layers\.0 would be calibrated on inputs that are 0\.01 away"):
        calibrate()


def test_a_model_that_llmcompressor_changes_is_caught(monkeypatch, calibrate):
    """The reference is the model as it was loaded, so that a wrong replacement of its modules shows."""
    from llmcompressor.modeling import offset_norm

    class Forgets(offset_norm.CalibrationOffsetNorm):
        def __init__(self, original, config):
            super().__init__(original, config)
            self.weight.data -= 0.5

    monkeypatch.setattr(
        offset_norm.NormCalibrationModule,
        "load_from_registry",
        classmethod(lambda cls, name, **given: Forgets(**given)),
    )
    with pytest.raises(UserError, match=r"Gemma2ForCausalLM: model\.layers\.1 would be calibrated on inputs"):
        calibrate("gemma2")


def test_where_eager_attention_is_another_function_the_own_one_is_used(monkeypatch, calibrate, calibration):
    from transformers.models.llama import modeling_llama

    right, eager = calibrate("llama"), modeling_llama.eager_attention_forward

    def unmasked(module, query, key, value, attention_mask, **options):
        return eager(module, query, key, value, None, **options)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", unmasked)
    other = calibrate("llama").state_dict()
    kept = [float((tensor.eq(0) == other[name].eq(0)).float().mean()) for name, tensor in right.state_dict().items()]
    assert min(kept) > 0.99


@pytest.mark.parametrize("where", ["order", "twice", "answer"])
def test_a_model_that_cannot_be_taken_apart_is_refused(where, monkeypatch, calibrate):
    from transformers.models.llama import modeling_llama

    layer = modeling_llama.LlamaDecoderLayer.forward

    def spoil(model):
        if where == "order":
            model.model.layers[0], model.model.layers[1] = model.model.layers[1], model.model.layers[0]
            forward = model.model.forward
            model.model.forward = lambda **given: backwards(model.model.layers, forward, given)
        if where == "twice":
            model.model.layers[1] = model.model.layers[0]
        if where == "answer":
            monkeypatch.setattr(
                modeling_llama.LlamaDecoderLayer, "forward", lambda *given, **named: layer(*given, **named)[:, 1:]
            )

    def backwards(layers, forward, given):
        layers._modules = dict(zip(layers._modules, reversed(list(layers._modules.values())), strict=True))
        try:
            return forward(**given)
        finally:
            layers._modules = dict(zip(layers._modules, reversed(list(layers._modules.values())), strict=True))

    with pytest.raises(
        UserError, match=r"LlamaForCausalLM cannot be calibrated layer by layer: .*compressor\.quantization\.method=rtn"
    ):
        calibrate("llama", change=spoil)


def test_float16_that_overflows_names_layer_and_dtype(calibrate):
    def overflow(model):
        model.to(torch.float16)
        model.model.layers[1].mlp.up_proj.weight.mul_(3e4)

    message = (
        r"calibration in float16: the output of model\.layers\.1 has .* NaN or infinite; float16 ends at 65504: use"
    )
    with pytest.raises(UserError, match=message + r" model\.dtype=bfloat16 or float32"):
        calibrate(change=overflow)
    assert calibrate.untouched


def test_an_overflow_beyond_the_first_block_names_the_layer(calibrate, calibration):
    """Only token 9 overflows, and only the last batch has it."""

    def overflow(model):
        model.to(torch.float16)
        model.model.embed_tokens.weight[9] = 0
        model.model.embed_tokens.weight[9, 3] = 6e4
        model.model.layers[0].input_layernorm.weight[3] = 6e4

    inputs = torch.cat([calibration.where(calibration != 9, 10).repeat(8, 1), torch.full((1, 32), 9)])
    with pytest.raises(
        UserError, match=r"float16: the (input|output) of model\.layers\.0\S* has values that are NaN or"
    ):
        calibrate(change=overflow, inputs=inputs)


def test_what_compression_leaves_is_finite(monkeypatch, calibrate):
    from llmcompressor.modifiers.pruning.wanda import base

    prune = base.WandaPruningModifier.on_sequential_epoch_end

    def spoil(self, state, event, **kwargs):
        prune(self, state, event, **kwargs)
        state.model.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan

    monkeypatch.setattr(base.WandaPruningModifier, "on_sequential_epoch_end", spoil)
    with pytest.raises(
        UserError, match=r"float32: the output of model\.layers\.0, once compressed, has values that are"
    ):
        calibrate()


def test_reconstruction_errors_are_of_finite_values(open_tiny, calibration):
    from idp.compress.reconstruction import reconstruction_errors

    model = open_tiny("llama").model.to(torch.float16)
    model.model.layers[1].mlp.up_proj.weight.mul_(3e4)
    layers = recipe.compressed_layers(model)
    saved = {f"{name}.weight": layer.weight for name, layer in layers.items()}
    with pytest.raises(
        UserError, match=r"calibration in float16: the \w+ of model\.layers\.1\.mlp\.\w+_proj has values"
    ):
        reconstruction_errors(model, layers, saved, calibration)


def test_the_reference_takes_no_more_than_one_forward_pass(open_tiny, calibration):
    model, passes = open_tiny("llama").model, []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    states = guard.plain_states(model, decoder_layers(model), calibration)
    assert len(passes) == 1 and [state.shape for state in states] == [(8, 32, 64)] * 3
    torch.testing.assert_close(states[0], model.model.embed_tokens(calibration))
