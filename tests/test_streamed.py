"""Weights written tensor by tensor are the files that a whole model would be saved as, and no model is in memory."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from idp.errors import UserError
from idp.models import streamed, weights

from .conftest import FAMILIES


def empty(model, dtype):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(model.config, dtype=dtype)


def contents(folder):
    """The weights, byte by byte, and what lies beside them."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_files_are_those_of_the_whole_model(family, dtype, open_tiny, tmp_path):
    model = open_tiny(family).model.to(dtype)
    weights.save(model, tmp_path / "whole")
    streamed.save(empty(model, dtype), tmp_path / "parts", model.state_dict(), where="here")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_so_are_shards(open_tiny, tmp_path):
    model = AutoModelForCausalLM.from_config((opened := open_tiny("llama").model).config)
    model.load_state_dict(opened.state_dict())
    model.save_pretrained(tmp_path / "whole", max_shard_size="60KB")
    streamed.save(empty(model, torch.float32), tmp_path / "parts", model.state_dict(), where="here", shard="60KB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 2
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_tensor_that_is_missing_or_of_another_shape_is_named(open_tiny, tmp_path):
    model = open_tiny("llama").model
    name, state = "model.norm.weight", model.state_dict()
    with pytest.raises(UserError, match=r"m.gguf: model.norm.weight is \[3\] in the file and \[64\] in the model"):
        streamed.save(empty(model, torch.float32), tmp_path / "a", state | {name: torch.ones(3)}, where="m.gguf")
    del state[name]
    with pytest.raises(UserError, match="m.gguf: it has no tensor model.norm.weight, which the model needs"):
        streamed.save(empty(model, torch.float32), tmp_path / "b", state, where="m.gguf")


def test_a_disk_that_writes_something_else_is_found(open_tiny, tmp_path, monkeypatch):
    model = open_tiny("llama").model
    digest = streamed.hashlib.blake2b

    class Wrong:
        def __init__(self, content):
            self.content = bytes(content)

        def digest(self, calls=[0]):  # noqa: B006 - counts
            calls[0] += 1
            return digest(self.content + b"x" * (calls[0] == 3)).digest()

    monkeypatch.setattr(streamed.hashlib, "blake2b", Wrong)
    with pytest.raises(UserError, match="on disk is not what was written"):
        streamed.save(empty(model, torch.float32), tmp_path / "a", model.state_dict(), where="m.gguf")
