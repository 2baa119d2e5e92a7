"""Frozen weights are plain ones, and the model's logits are those of llmcompressor's own fake-quantised layers."""

import pytest
import torch
from torch import nn

from idp.compress import recipe
from idp.compress.freeze import freeze
from idp.compress.measure import measure_weights
from idp.compress.terminal import quiet


def run(model, compressor, inputs):
    """Compresses in place; returns the group size in use."""
    group_size = recipe.check(compressor, model)
    with quiet():
        from idp.compress import oneshot

        oneshot.run(model, recipe.build(compressor, group_size, model), inputs)
    return group_size


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize(
    ("name", "group_size", "symmetric"),
    [
        ("gptq2", 32, False),
        ("gptq3", 64, False),
        ("gptq4", -1, True),
        ("gptq8", 64, False),
        ("rtn3", 32, True),
        ("rtn4", -1, False),
        ("awq3", 64, False),
        ("awq4", -1, False),
        ("sparsegpt50_gptq4", 64, True),
        ("wanda50_gptq4", -1, False),
    ],
)
def test_frozen_logits_equal_the_fake_quantised_ones(
    family, name, group_size, symmetric, open_tiny, calibration, compose
):
    loaded = open_tiny(family)
    options = [f"compressor.quantization.group_size={group_size}", f"compressor.quantization.symmetric={symmetric}"]
    compressor = compose(f"compressor={name}", *options).compressor
    layers = recipe.compressed_layers(loaded.model)
    dense = loaded.model(calibration).logits
    size = run(loaded.model, compressor, calibration)
    expected = loaded.model(calibration).logits
    grids = freeze(loaded.model)
    assert {name.rsplit(".", 1)[0] for name in grids} == set(layers)
    assert all(type(layer).forward is nn.Linear.forward and "forward" not in vars(layer) for layer in layers.values())
    torch.testing.assert_close(loaded.model(calibration).logits, expected, atol=1e-6, rtol=0)
    assert (expected - dense).abs().max() > 1e-4
    weights = ((name, layer.weight) for name, layer in layers.items())
    bits = compressor.quantization.bits
    measured = measure_weights(weights, bits=bits, group_size=size, symmetric=symmetric)
    assert all(2 < row["distinct_values"] <= 2**bits for row in measured["layers"].values())
    assert not any("scale" in name for name in loaded.model.state_dict())


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_fewer_bits_do_more_damage(method, open_tiny, calibration, compose):
    errors = []
    for bits in (8, 4, 3, 2):
        loaded = open_tiny("llama")
        dense = loaded.model(calibration).logits
        run(loaded.model, compose(f"compressor={method}{bits}").compressor, calibration if method == "gptq" else None)
        errors.append((loaded.model(calibration).logits - dense).pow(2).mean().item())
    assert errors == sorted(errors) and errors[0] > 0
