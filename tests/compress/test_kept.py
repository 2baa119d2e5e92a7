"""Quantised layers are kept as integers and scales, and come back as the very weights that were measured."""

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from idp import models
from idp.compress import kept, pack
from idp.compress.saved import SavedWeights
from idp.config import Claims, Model
from idp.models import unpacking, weights
from idp.models.weight_files import WeightFiles

FLOAT32 = Model("tiny", "local", None, None, "float32", "cpu", None, False, "auto", {})


def bits_of(tensor):
    return tensor.contiguous().view(torch.uint8)


def before_it_was_saved(monkeypatch):
    """Every tensor of the model as it is handed over to be saved."""
    seen, plain = {}, kept.save

    def save(model, *arguments):
        seen.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return plain(model, *arguments)

    monkeypatch.setattr(kept, "save", save)
    return seen


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        ("bfloat16", ["rtn3"]),
        ("bfloat16", ["gptq4", "compressor.quantization.symmetric=true", "compressor.quantization.group_size=-1"]),
        ("float16", ["awq3"]),
        ("float32", ["sparsegpt50_gptq4"]),
    ],
    ids=str,
)
def test_what_is_opened_is_what_was_saved(dtype, words, compress_with, monkeypatch, tmp_path):
    seen = before_it_was_saved(monkeypatch)
    product = compress_with(f"model.dtype={dtype}", "compressor=" + words[0], *words[1:], folder=tmp_path)
    assert product.read("weights.json")["stored"] == {"packed": 14, "dense": 0}
    model = models.open_model(product.path / "model", replace(FLOAT32, dtype=dtype)).model
    assert model.state_dict().keys() == seen.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(bits_of(tensor), bits_of(seen[name])), name
    assert type(model.get_submodule("model.layers.0.mlp.down_proj")) is nn.Linear
    assert not hasattr(model.config, "quantization_config")
    if "sparsegpt" in words[0]:
        assert float((seen["model.layers.0.mlp.down_proj.weight"] == 0).float().mean()) >= 0.5


def test_it_takes_less_and_transformers_opens_it(compress_with, tmp_path):
    from transformers import AutoModelForCausalLM

    product = compress_with("compressor=rtn4", folder=tmp_path)
    ours = models.open_model(product.path / "model", FLOAT32)
    theirs = AutoModelForCausalLM.from_pretrained(product.path / "model").eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours.model(ids).logits, atol=1e-5, rtol=0)
    stored = WeightFiles(product.path / "model", "x").entries
    layers = product.read("weights.json")["layers"]
    for name, row in layers.items():
        rows, columns = row["shape"]
        assert stored[f"{name}.weight_packed"].bytes == rows * columns // 2 and f"{name}.weight" not in stored
    assert ours.model.name_or_path == str(product.path / "model")


def test_layers_that_would_not_come_back_stay_dense_and_are_counted(open_tiny, tmp_path, caplog):
    model = open_tiny("llama").model
    layer = "model.layers.1.self_attn.q_proj"
    grids = {}
    for name in (layer, "model.layers.0.mlp.up_proj"):
        weight = model.get_submodule(name).weight
        scale = weight.abs().amax(dim=1, keepdim=True) / 7
        weight.data = (weight / scale).round() * scale + 0.0
        grids |= {f"{name}.scale": scale, f"{name}.zero_point": torch.zeros_like(scale, dtype=torch.int8)}
    model.get_submodule(layer).weight.data[0, 0] += 1e-4
    claims = Claims(bits=4, group_size=-1, symmetric=True)
    with caplog.at_level(logging.WARNING):
        assert kept.save(model, tmp_path, grids, claims) == {"packed": 1, "dense": 1}
    assert f"1 of 2 quantised layers are kept as plain weights, {layer}" in caplog.text.replace(
        "since packed they would not be the same to the last bit, the first of them ", ""
    )
    saved = SavedWeights(tmp_path)
    for name, tensor in model.named_parameters():  # the tied head is there once
        assert torch.equal(saved[name], tensor), name
    ignored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["ignore"]
    assert layer in ignored and "model.layers.0.mlp.up_proj" not in ignored


def test_a_zero_with_a_sign_is_not_the_same_to_the_last_bit():
    weight, scale = torch.tensor([[-0.0, 0.5]]), torch.tensor([[0.5]])
    model = SimpleNamespace(state_dict=lambda: {"a.weight": weight})
    grids, refused = {"a.scale": scale, "a.zero_point": torch.zeros(1, 1, dtype=torch.int8)}, []
    assert "a.weight" in pack.packed_state(model, grids, bits=4, symmetric=True, refused=refused) and refused == ["a"]
    weight += 0.0
    assert "a.weight_packed" in pack.packed_state(model, grids, bits=4, symmetric=True, refused=[])


def test_products_from_before_are_taken_as_they_are(compress_with, monkeypatch, tmp_path):
    monkeypatch.setattr(kept, "save", lambda model, folder, *_: weights.save(model, folder) or {})
    old = compress_with("compressor=rtn4", folder=tmp_path)
    plain = load_file(old.path / "model" / "model.safetensors")
    monkeypatch.undo()
    again = compress_with("compressor=rtn4", folder=tmp_path)
    assert again.reused and again.key == old.key
    new = compress_with("compressor=rtn4", folder=tmp_path / "new")
    assert new.key == old.key and not new.reused
    assert (new.path / "model" / "model.safetensors").stat().st_size < (
        0.5 * (old.path / "model" / "model.safetensors").stat().st_size
    )
    for folder in (old.path, new.path):
        opened = models.open_model(folder / "model", FLOAT32).model.state_dict()
        assert all(torch.equal(opened[name], plain[name]) for name in plain)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("columns", [8, 24, 100])
def test_codes_are_the_library_s(bits, columns):
    from compressed_tensors.compressors.pack_quantized import pack_to_int32

    draw = torch.Generator().manual_seed(bits)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (40, columns), generator=draw).to(torch.int8)
    words = pack_to_int32(codes, bits)
    assert torch.equal(unpacking._codes(words, columns, bits).to(torch.int16) - 2 ** (bits - 1), codes.to(torch.int16))


def test_in_parts_it_is_the_same(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    scale = torch.rand(40, 4, generator=draw).bfloat16()
    zero_point = torch.randint(-4, 4, (40, 4), generator=draw).to(torch.int8)
    steps = torch.randint(-4, 4, (40, 4, 8), generator=draw).bfloat16() - zero_point[..., None].bfloat16()
    weight = (steps * scale[..., None]).flatten(1) + 0.0
    monkeypatch.setattr(pack, "CHUNK", 100)
    monkeypatch.setattr(unpacking, "CHUNK", 100)
    packed = pack.pack(weight, scale, zero_point, 3, False)
    parts = (packed[part] for part in (unpacking.WORDS, unpacking.SCALE, unpacking.ZERO_POINT))
    assert torch.equal(bits_of(unpacking.unpack(*parts, [40, 32], 3)), bits_of(weight))
