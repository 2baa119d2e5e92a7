"""One set of weights in memory at a time, whatever a command compares."""

import weakref
from types import SimpleNamespace

import pytest
import torch

from idp import models
from idp.analyze.similarity import compare, compare_apart
from idp.config import Model
from idp.memory import peak_bytes, private_bytes, release, start_peak
from idp.models.gguf import model as ggufs
from idp.models.gguf import tensors
from idp.prompting.repaired import RepairedModel
from idp.store import Store

from . import ggufs as writing
from .alive import counted


@pytest.mark.parametrize("recovery", ["lora", "idp"])
def test_a_run_never_holds_two_models(recovery, run_here, bridges):
    """Baselines, a bank's prompts, fidelity, and latency of dense, compressed, repaired and merged."""
    options = ("latency=default", "latency.rounds=2", "latency.warmup=0", "latency.new_tokens=2", "tracker=none")
    options += (*bridges, "task=arc_easy", "task.documents=4")
    with counted() as alive:
        run_here("model=tiny_llama", "budget=smoke", "compressor=gptq3", f"recovery={recovery}", *options)
    assert alive.opened >= 5
    assert alive.most == 1


def test_similarity_holds_one_model_and_finds_the_same(open_tiny, make_bank, tmp_path):
    inputs = [[5, 6, 7, 8, 9], [3, 4, 5, 6]]

    def dense():
        return RepairedModel(open_tiny("llama"))

    def other():
        loaded = open_tiny("llama")
        with torch.no_grad():
            loaded.model.model.layers[0].mlp.up_proj.weight.mul_(0.5)
        return RepairedModel(loaded, make_bank(loaded, [4]))

    with counted() as alive:
        found = compare_apart(dense, other, inputs, "other", tmp_path)
    assert alive.opened == 2 and alive.most == 1
    assert not list(tmp_path.iterdir())
    assert found == compare(dense(), other(), inputs, "other")


ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
MIB = 2**20


@pytest.mark.skipif(private_bytes() is None, reason="only Linux tells memory of its own from a file's pages")
def test_opening_takes_no_memory_beside_the_weights(tmp_path):
    """The file is mapped: where its dtype is wanted its pages are the weights, which all processes share."""
    config = Model("m", "random", None, None, "float32", "cpu", None, False, "auto", ARCHITECTURE)
    folder = models.model_folder(models.load(config, models.find_model(config), Store(tmp_path)))
    held = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert held > 190 * MIB
    release()
    before = private_bytes()
    loaded = models.open_model(folder, config)
    assert private_bytes() - before < 0.1 * held  # shared with whoever opens it
    del loaded
    release()
    half = Model("m", "random", None, None, "bfloat16", "cpu", None, False, "auto", ARCHITECTURE)
    start_peak()
    start, before = peak_bytes(), private_bytes()
    loaded = models.open_model(folder, half)
    assert private_bytes() - before < 0.6 * held  # the weights, at half the size
    assert peak_bytes() - start < 0.6 * held + held  # and pages of the file, which the system may drop
    assert loaded.model.dtype == torch.bfloat16


def test_an_external_checkpoint_is_not_there_twice(open_tiny, monkeypatch):
    """Its tensors leave the checkpoint's as they enter the model's, in the model's dtype."""
    from transformers import core_model_loading

    from idp.compress import external
    from idp.compress.formats.claims import Decompressed

    empty = open_tiny("llama")
    config = Model("m", "random", None, None, "bfloat16", "cpu", None, False, "auto", {})
    state = {name: tensor.clone() for name, tensor in empty.model.state_dict().items() if name != "lm_head.weight"}
    theirs = [weakref.ref(tensor) for tensor in state.values()]
    left = []
    original = core_model_loading.set_param_for_module

    def counting(*args, **kwargs):
        left.append(sum(tensor() is not None for tensor in theirs))
        return original(*args, **kwargs)

    monkeypatch.setattr(core_model_loading, "set_param_for_module", counting)
    loaded = external._fitted(
        SimpleNamespace(path="theirs"), Decompressed("plain", state, {}, {}, 0), empty, config, tied=True
    )
    assert loaded.dtype == torch.bfloat16 and not state
    assert len(left) == len(theirs) and left[-1] <= 1


def test_a_gguf_file_is_converted_tensor_by_tensor(model_folders, tmp_path, monkeypatch):
    file = writing.write_model(model_folders("llama"), tmp_path / "a.gguf")
    read, original = [], tensors.Tensor.__getitem__

    def reading(self, place):
        assert not any(tensor() is not None for tensor in read), "the last one is still in memory"
        made = original(self, place)
        read.append(weakref.ref(made))
        return made

    monkeypatch.setattr(tensors.Tensor, "__getitem__", reading)
    with counted() as alive:
        ggufs.convert(file, tmp_path / "out")
    assert alive.opened == 0 and len(read) > 10
