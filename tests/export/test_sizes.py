"""`packed_bytes` is what the tensors of an export take, to the byte; and packed experts are read back as they were."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from idp import models
from idp.compress.sizes import recorded
from idp.errors import UserError
from idp.export import checkpoint
from tests.compress.conftest import compress_with  # noqa: F401 - a fixture
from tests.compress.mixtures import make_mixture
from tests.conftest import FAMILIES

SYMMETRIC = "compressor.quantization.symmetric=true"
UNTIED = {**FAMILIES["llama"], "tie_word_embeddings": False, "intermediate_size": 96}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, model_folders):
    from idp.models import _make_random

    root = tmp_path_factory.mktemp("sizes")
    made = {name: make_mixture(name, root / name) for name in ("mixtral", "qwen3_moe", "granitemoe", "olmoe")}
    _make_random(UNTIED, root / "untied")
    return {**made, "untied": root / "untied", "tied": model_folders("llama")}


@pytest.fixture
def exported(folders, compress_with, compose, tmp_path):  # noqa: F811
    """`exported(family, dtype, *overrides)`: what a record says of its weights, the folder, and the measured model."""

    def export(family, dtype, *overrides):
        where = ["model=local", f"model.path={folders[family]}", f"model.name={family}", f"model.dtype={dtype}"]
        product, composed = compress_with(*where, *overrides), compose(*where, *overrides)
        config = composed.model
        loaded = models.open_model(models.model_folder(product), config)
        state = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
        expected = checkpoint.logits_of(loaded.model, loaded.tokenizer)
        parts = {"compressed": product, "model": config, "compressor": composed.compressor}
        run = SimpleNamespace(**parts, repair=None, dense_folder=folders[family])
        checkpoint._save_model(run, loaded, tmp_path)
        assert checkpoint.verify(tmp_path, expected, config) == 0
        return recorded(product, dtype), tmp_path, state

    return export


CASES = [
    *[("tied", dtype, "rtn4", False) for dtype in ("float32", "bfloat16", "float16")],
    ("tied", "bfloat16", "rtn3", True),
    ("tied", "float32", "none", False),
    ("untied", "float32", "gptq3", False),
    ("untied", "bfloat16", "gptq3", False),
    ("untied", "float16", "rtn3", False),
    ("untied", "bfloat16", "wanda50", False),
    ("mixtral", "float32", "rtn4", True),
    ("mixtral", "bfloat16", "rtn3", True),
    ("mixtral", "float32", "none", False),
    ("qwen3_moe", "float32", "gptq3", True),
    ("olmoe", "bfloat16", "rtn8", True),
    ("granitemoe", "float32", "magnitude50", False),
]


@pytest.mark.parametrize(("family", "dtype", "name", "symmetric"), CASES)
def test_packed_bytes_are_those_of_an_export(family, dtype, name, symmetric, exported):
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    weights, folder, state = exported(family, dtype, f"compressor={name}", *([SYMMETRIC] if symmetric else []))
    tensors = [tensor for file in folder.glob("*.safetensors") for tensor in load_file(file).values()]
    assert weights["packed_bytes"] == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert weights["dense_bits"] == {"float32": 32, "bfloat16": 16, "float16": 16}[dtype]
    assert weights["effective_bytes"] <= weights["packed_bytes"]
    packed = name not in ("none", "wanda50", "magnitude50")
    assert (weights["effective_bytes"] < weights["packed_bytes"]) == (name in ("wanda50", "magnitude50"))
    plainly = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if packed else {}
    read, about = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **plainly)
    assert not about["missing_keys"] and not about["unexpected_keys"]
    found = read.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_what_transformers_could_not_read_is_refused(exported):
    with pytest.raises(UserError, match="MixtralForCausalLM: transformers reads packed experts without their zero"):
        exported("mixtral", "float32", "compressor=rtn4")
    with pytest.raises(UserError, match="GraniteMoeForCausalLM: .* all experts of a layer in one tensor"):
        exported("granitemoe", "float32", "compressor=rtn4", SYMMETRIC)


def test_routers_stay_out_of_what_other_readers_take_for_linear_layers(exported):
    import json

    _, folder, _ = exported("mixtral", "float32", "compressor=rtn4", SYMMETRIC)
    described = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert described["ignore"] == ["lm_head", *(f"model.layers.{n}.block_sparse_moe.gate" for n in (0, 1))]
    stored = load_file(folder / "model.safetensors")
    assert "model.layers.1.block_sparse_moe.experts.3.w2.weight_packed" in stored
