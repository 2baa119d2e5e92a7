"""Compression through llmcompressor: frozen weights equal its own, and what is reported is what the weights are."""

import pytest
import torch
from torch import nn

from idp.compress import recipe
from idp.compress.freeze import freeze
from idp.compress.measure import distinct_values, measure_layer, measure_weights
from idp.compress.stage import _oneshot
from idp.compress.terminal import quiet
from idp.errors import UserError


@pytest.fixture
def calibration():
    return torch.randint(1, 250, (8, 32), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize(("bits", "group_size"), [(2, 32), (3, 64), (4, -1), (8, 64)])
def test_frozen_logits_equal_the_fake_quantised_ones(family, bits, group_size, open_tiny, calibration, compose):
    loaded = open_tiny(family)
    compressor = compose(f"compressor=gptq{bits}", f"compressor.quantization.group_size={group_size}").compressor
    layers = recipe.compressed_layers(loaded.model)
    size = recipe.resolve_group_size(compressor.quantization, layers)
    dense = loaded.model(calibration).logits
    with quiet():
        _oneshot(loaded.model, recipe.build(compressor, size), calibration)
    expected = loaded.model(calibration).logits
    grids = freeze(loaded.model)
    assert {name.rsplit(".", 1)[0] for name in grids} == set(layers)
    assert all(type(layer).forward is nn.Linear.forward and "forward" not in vars(layer) for layer in layers.values())
    torch.testing.assert_close(loaded.model(calibration).logits, expected, atol=1e-6, rtol=0)
    assert (expected - dense).abs().max() > 1e-4
    measured = measure_weights(layers, 0, bits=bits, group_size=size, symmetric=False)
    assert all(row["distinct_values"] <= 2**bits for row in measured["layers"].values())
    assert not any("scale" in name for name in loaded.model.state_dict())


def test_fewer_bits_do_more_damage(open_tiny, calibration, compose):
    errors = []
    for bits in (8, 4, 3, 2):
        loaded = open_tiny("llama")
        dense = loaded.model(calibration).logits
        with quiet():
            _oneshot(loaded.model, recipe.build(compose(f"compressor=gptq{bits}").compressor, 64), calibration)
        errors.append((loaded.model(calibration).logits - dense).pow(2).mean().item())
    assert errors == sorted(errors)


def test_group_sizes(open_tiny, compose):
    layers = recipe.compressed_layers(open_tiny("llama").model)
    quantization = compose("compressor=gptq4").compressor.quantization
    assert recipe.resolve_group_size(quantization, layers) == 64  # widths are 64 and 128
    quantization.group_size = -1
    assert recipe.resolve_group_size(quantization, layers) == -1
    quantization.group_size = 128
    with pytest.raises(UserError, match=r"group_size=128: does not divide model\.layers\.0\.\S+, whose width is 64"):
        recipe.resolve_group_size(quantization, layers)
    assert recipe.resolve_group_size(compose("compressor=gptq4").compressor.quantization, {"a": nn.Linear(7, 7)}) == -1


def test_labels_say_what_is_done(compose):
    assert recipe.label(compose().compressor) == "none"
    assert recipe.label(compose("compressor=gptq3").compressor) == "gptq3"
    override = ["compressor=gptq4", "compressor.quantization.bits=3", "compressor.quantization.group_size=-1"]
    assert recipe.label(compose(*override).compressor) == "gptq3-g-1"


def test_measured_figures():
    weight = torch.tensor([[0.0, 1.0, 2.0, 0.0], [0.0, 3.0, 3.0, 3.0]])
    assert distinct_values(weight, 4) == 3 and distinct_values(weight, 2) == 2
    row = measure_layer(weight, bits=4, group_size=2, symmetric=False)
    assert row["zeros"] == 3 and row["sparsity"] == 3 / 8
    assert row["bits_per_weight"] == 4 + (16 + 4) / 2
    layer = nn.Linear(4, 2, bias=False)
    layer.weight.data = weight
    whole = measure_weights({"layer": layer}, 10, bits=None, group_size=None, symmetric=False)
    assert whole["packed_bytes"] == 8 * 2 + 10 * 2
    assert whole["effective_bytes"] == round(8 * (1 + 5 / 8 * 16) / 8 + 20)
    with pytest.raises(UserError, match="layer holds 3 distinct values in a group, more than 1 bits"):
        measure_weights({"layer": layer}, 0, bits=1, group_size=4, symmetric=False)
