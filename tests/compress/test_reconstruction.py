"""Reconstruction error of each layer, against two models run side by side."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from idp.compress import recipe, reconstruction
from idp.compress.reconstruction import reconstruction_errors
from idp.compress.saved import SavedWeights
from idp.errors import UserError


def test_it_equals_the_plain_formula(open_tiny, calibration, tmp_path):
    dense, other = open_tiny("llama").model, open_tiny("llama").model
    generator = torch.Generator().manual_seed(0)
    layers = recipe.compressed_layers(other)
    for layer in layers.values():
        layer.weight.data += 0.01 * torch.randn(layer.weight.shape, generator=generator)
    other.save_pretrained(tmp_path, max_shard_size="50KB")
    assert (tmp_path / "model.safetensors.index.json").exists()  # in several files, as large models are

    inputs, handles = {}, []
    for name, layer in recipe.compressed_layers(dense).items():

        def keep(module, given, output, name=name):
            inputs[name] = given[0].flatten(0, 1)

        handles.append(layer.register_forward_hook(keep))
    dense(calibration)
    for handle in handles:
        handle.remove()
    errors = reconstruction_errors(dense, recipe.compressed_layers(dense), SavedWeights(tmp_path), calibration)
    assert errors.keys() == layers.keys()
    for name, layer in recipe.compressed_layers(dense).items():
        x, w = inputs[name].double(), layer.weight.double()
        expected = (x @ (w - layers[name].weight.double()).T).norm() ** 2 / (x @ w.T).norm() ** 2
        assert errors[name] == pytest.approx(float(expected), rel=1e-4)
    assert not any(layer._forward_hooks for layer in recipe.compressed_layers(dense).values())


def test_a_bounded_number_of_tokens(open_tiny, monkeypatch, tmp_path):
    model = open_tiny("llama").model
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(reconstruction, "TOKENS", 100)
    rows = []
    model.base_model.register_forward_pre_hook(
        lambda _, arguments, given: rows.append(given["input_ids"].shape), with_kwargs=True
    )
    inputs = torch.randint(1, 250, (50, 32))
    assert set(
        reconstruction_errors(model, recipe.compressed_layers(model), SavedWeights(tmp_path), inputs).values()
    ) == {0.0}
    assert rows == [(3, 32)]


def test_what_awq_scaled_is_unscaled_before_the_comparison(compress_with):
    product = compress_with("compressor=awq4", "compressor.quantization.bits=8")
    scales = load_file(product.path / "scales.safetensors")
    assert {name.rsplit(".", 1)[1] for name in scales} == {"input_scale", "output_scale"}
    assert any((scale - 1).abs().max() > 0.1 for scale in scales.values())
    # Scaled by that much, and yet at 8 bits next to nothing has changed.
    assert product.read("weights.json")["worst"]["reconstruction_error"]["value"] < 1e-3
    dense = AutoModelForCausalLM.from_pretrained(
        product.path / "../../load" / product.manifest["parent"] / "model", dtype=torch.float32
    )
    inputs = torch.randint(1, 250, (2, 32))
    layers = recipe.compressed_layers(dense)
    without = reconstruction_errors(dense, layers, SavedWeights(product.path / "model"), inputs)
    assert max(without.values()) > 0.01


def test_a_missing_tensor_or_file_is_named(open_tiny, tmp_path):
    open_tiny("llama").model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the saved model has no tensor model.layers.9.weight among its 20"):
        SavedWeights(tmp_path)["model.layers.9.weight"]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="model.safetensors is missing"):
        SavedWeights(tmp_path)
