"""Weights are those of the file: what is missing, left over, misshapen, cut short or packed is refused by name."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from idp import models
from idp.errors import UserError
from idp.models import _make_random, weights
from idp.store import Store

UP = "model.layers.1.mlp.up_proj.weight"
HIDDEN = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MIXTURES = {
    "mixtral": {"model_type": "mixtral", **HIDDEN, "num_local_experts": 4},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        **HIDDEN,
        "head_dim": 16,
        "num_experts": 4,
        "moe_intermediate_size": 32,
    },
}


@pytest.fixture
def copied(model_folders, tmp_path):
    """`copied(family)`: a copy of a tiny model's folder, and its tensors."""

    def copy(family="llama"):
        folder = tmp_path / "model"
        shutil.copytree(model_folders(family), folder)
        return folder, load_file(folder / "model.safetensors")

    return copy


@pytest.fixture
def loads(compose, tmp_path):
    """`loads(folder)`: what a run does with `model.path` before it computes: the stored dense model's folder."""

    def load(folder):
        config = compose("model=local", f"model.path={folder}").model
        return models.model_folder(models.load(config, models.find_model(config), Store(tmp_path / "store")))

    return load


def opened(folder, compose):
    return models.open_model(folder, compose("model=local", f"model.path={folder}", "model.dtype=float32").model)


def config_of(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


# Each changes tensors in place.
def missing(tensors):
    del tensors[UP]


def renamed(tensors):
    tensors[UP.replace("up_proj", "upward_proj")] = tensors.pop(UP)


def misshapen(tensors):
    tensors[UP] = tensors[UP][:-2].clone()


def left_over(tensors):
    tensors["model.layers.1.mlp.up_proj.bias"] = torch.zeros(128)


def one_layer_more(tensors):
    for name in [name for name in tensors if ".layers.1." in name]:
        tensors[name.replace(".layers.1.", ".layers.2.")] = tensors[name].clone()


def whole_numbers(tensors):
    tensors[UP] = (100 * tensors[UP]).to(torch.int8)


def packed(tensors):
    tensors["model.layers.0.mlp.up_proj.qweight"] = torch.zeros(3, dtype=torch.int32)


def another_head(tensors):
    tensors["lm_head.weight"] = 2 * tensors["model.embed_tokens.weight"]


FAULTS = [
    (missing, f"it has no tensor {UP}, which the model needs"),
    (renamed, f"it has no tensor {UP}, which the model needs"),
    (misshapen, rf"{UP} is \[126, 64\] in the file and \[128, 64\] in the model"),
    (left_over, "it has a tensor model.layers.1.mlp.up_proj.bias, for which a llama model has no place"),
    (one_layer_more, "it has a tensor model.layers.2.input_layernorm.weight"),
    (whole_numbers, f"{UP} is stored as I8, which is no plain weight"),
    (packed, "is already compressed: model.layers.0.mlp.up_proj.qweight is packed"),
    (another_head, "config.json ties the output head to the embeddings"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_a_fault_is_found_in_the_headers_and_when_it_is_opened(change, message, copied, loads, compose, monkeypatch):
    folder, tensors = copied()
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=rf"model\.path=.*{message}"):
        loads(folder)
    if change not in (whole_numbers, packed):  # which are plain to read, and wrong
        with pytest.raises(UserError, match=message.replace("a llama model", "a llama model")):
            opened(folder, compose)


def test_pickled_weights_are_held_to_the_same(copied, loads, compose):
    folder, tensors = copied()
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert torch.equal(opened(loads(folder), compose).model.state_dict()[UP], tensors[UP])
    missing(tensors)
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=f"it has no tensor {UP}"):
        loads(folder)
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: cannot be read as PyTorch weights"):
        loads(folder)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "qwen2", "mistral", "gemma2", "gemma3_text"])
def test_sound_models_are_read_as_they_are(family, copied, loads, compose):
    folder, tensors = copied(family)
    found = opened(loads(folder), compose).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_tensors_that_a_model_does_without(copied, loads, compose):
    folder, tensors = copied()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    tensors["model.vision_tower.patches.weight"] = tensors["mtp.fc.weight"] = torch.zeros(3)
    one_layer_more(tensors)
    config_of(folder, num_nextn_predict_layers=1)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    assert torch.equal(opened(loads(folder), compose).model.state_dict()[UP], tensors[UP])


def test_an_old_gpt2_with_its_masks_and_without_the_first_part_of_its_names(copied, loads, compose):
    folder, tensors = copied("gpt2")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for layer in (0, 1):
        old[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 1024, 1024, dtype=torch.bool)
        old[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(old, folder / "model.safetensors")
    found = opened(loads(folder), compose).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("mixtral", ("3.w1", None), r"it has no tensor .*experts\.3\.w1\.weight"),
        ("mixtral", ("1.w1", "4.w1"), r"it has no tensor .*experts\.1\.w1\.weight"),  # four are there, in another order
        ("qwen3_moe", ("2.down_proj", None), r"it has no tensor .*experts\.2\.down_proj\.weight"),
    ],
)
def test_experts_that_are_not_all_there(family, change, message, loads, compose, tmp_path):
    folder = tmp_path / family
    _make_random(MIXTURES[family], folder)
    opened(loads(folder), compose)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(tensors) if f"experts.{change[0]}." in name)
    tensor = tensors.pop(name)
    if change[1]:
        tensors[name.replace(change[0], change[1])] = tensor
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=message):
        loads(folder)
    with pytest.raises(UserError, match=message):
        opened(folder, compose)


def test_heads(copied, loads, compose):
    folder, tensors = copied("qwen2")  # an untied head
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}, folder / "model.safetensors"
    )
    with pytest.raises(UserError, match=r"it has no tensor lm_head\.weight"):
        loads(folder)
    config_of(folder, tie_word_embeddings=True)
    found = opened(loads(folder), compose).model
    assert torch.equal(found.lm_head.weight, tensors["model.embed_tokens.weight"])


def test_a_tied_head_that_is_stored_as_well(copied, loads, compose):
    folder, tensors = copied()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    assert opened(loads(folder), compose).model.lm_head.weight.shape == (257, 64)


def sharded(folder, tensors, **index):
    """The folder with its tensors in two files and an index of them, of which some parts may be others."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    names, places = sorted(tensors), {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places} | index
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return places


def test_shards(copied, loads, compose):
    folder, tensors = copied()
    sharded(folder, tensors)
    assert torch.equal(opened(loads(folder), compose).model.state_dict()[UP], tensors[UP])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda f, t, p: sharded(f, t, weight_map=None), "has no weight_map from tensors to files"),
        (lambda f, t, p: (f / "model.safetensors.index.json").write_text("{"), r"index\.json: not JSON"),
        (lambda f, t, p: (f / "model.safetensors.index.json").write_text("[]"), r"index\.json: not a JSON object"),
        (lambda f, t, p: (f / "model.safetensors.index.json").write_text(json.dumps({"weight_map": p})), "metadata"),
        (lambda f, t, p: (f / "model-00002-of-00002.safetensors").unlink(), "00002-of-00002.safetensors is missing"),
        (
            lambda f, t, p: sharded(f, t, weight_map=p | {"model.x": p[UP]}),
            "says that model.x is in .* where it is not",
        ),
        (lambda f, t, p: sharded(f, t, weight_map=dict.fromkeys(p, p[UP])), "says that .* where it is not"),
        (lambda f, t, p: sharded(f, t, weight_map={UP: p[UP]} | {"lm_head.weight": "../x"}), "names ../x"),
        (
            lambda f, t, p: sharded(f, t, weight_map={name: file for name, file in p.items() if name != UP}),
            f"has a tensor {UP} that model.safetensors.index.json does not name",
        ),
    ],
)
def test_an_index_that_is_not_that_of_its_shards(fault, message, copied, compose):
    folder, tensors = copied()
    fault(folder, tensors, sharded(folder, tensors))
    with pytest.raises(UserError, match=message):
        models.find_model(compose("model=local", f"model.path={folder}").model)


def test_a_stale_index_beside_newer_weights(copied, loads, compose):
    folder, tensors = copied()
    sharded(folder, {name: 0 * tensor for name, tensor in tensors.items()})
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(opened(loads(folder), compose).model.state_dict()[UP], tensors[UP])


def test_weights_that_the_config_names(copied, loads, compose):
    folder, tensors = copied()
    save_file({name: 0 * tensor for name, tensor in tensors.items()}, folder / "mine.safetensors", {"format": "pt"})
    config_of(folder, transformers_weights="mine.safetensors")
    assert not opened(loads(folder), compose).model.state_dict()[UP].any()  # as transformers reads it
    config_of(folder, transformers_weights="../mine.safetensors")
    with pytest.raises(UserError, match=r"transformers_weights=\.\./mine.safetensors in config.json is no file"):
        models.find_model(compose("model=local", f"model.path={folder}").model)


@pytest.mark.parametrize("rest", [slice(0, -100), slice(0, 0), slice(0, 40)])
def test_a_file_that_is_cut_short(rest, copied, compose):
    folder, _ = copied()
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[rest])
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read as safetensors"):
        models.find_model(compose("model=local", f"model.path={folder}").model)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, r"compressor=external compressor\.path=.*/model \(gptq\)"),
        ({"quant_method": "awq", "bits": 4}, r"compressor=external compressor\.path=.*/model \(awq\)"),
        ({"quant_method": "compressed-tensors"}, r"use compressor=external .*\(compressed-tensors\)"),
        ({"quant_method": "fp8"}, "fp8, which compressor=external .* does not read"),
        ({"quant_method": "mxfp4"}, "mxfp4, which compressor=external .* does not read"),
        ({"load_in_4bit": True}, "bitsandbytes, which compressor=external .* does not read"),
        ({"bits": 3}, "an unnamed method, which compressor=external .* does not read"),
    ],
)
def test_a_dense_model_that_is_compressed(described, message, copied, compose):
    folder, _ = copied()
    config_of(folder, quantization_config=described)
    with pytest.raises(UserError, match=rf"model\.path=.* is already compressed: .*{message}"):
        models.find_model(compose("model=local", f"model.path={folder}").model)


def test_a_compressed_model_that_another_file_describes(copied, compose):
    folder, _ = copied()
    (folder / "quantize_config.json").write_text('{"bits": 4}')
    with pytest.raises(UserError, match=r"is already compressed: use compressor=external .*\(gptq\)"):
        models.find_model(compose("model=local", f"model.path={folder}").model)


def test_a_compressed_model_on_the_hub(compose, monkeypatch):
    from types import SimpleNamespace

    from huggingface_hub import HfApi

    info = SimpleNamespace(sha="abc", config={"quantization_config": {"quant_method": "awq"}}, siblings=[])
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: info)
    with pytest.raises(UserError, match="is already compressed: use compressor=external compressor.path=facebook/opt"):
        models.find_model(compose("model=opt_125m").model)


def test_an_adapter_beside_the_weights(copied, compose):
    folder, _ = copied()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="an adapter lies beside the weights"):
        models.find_model(compose("model=local", f"model.path={folder}").model)


def test_a_reused_folder_is_checked_again(copied, loads, compose, tmp_path, monkeypatch):
    folder, tensors = copied()
    missing(tensors)
    save_file(tensors, folder / "model.safetensors")
    with monkeypatch.context() as patch:  # as an earlier version would have stored it
        patch.setattr(weights, "check_files", lambda *_: None)
        loads(folder)
    with pytest.raises(UserError, match=f"it has no tensor {UP}"):
        loads(folder)


@pytest.mark.parametrize("settings", [{"temperature": 0.6, "top_p": 0.9, "eos_token_id": [0, 5]}, {"num_beams": 4}])
def test_generation_settings_survive_as_they_stand(settings, copied, compose, tmp_path):
    folder, _ = copied()
    text = json.dumps(settings)
    (folder / "generation_config.json").write_text(text)
    model = opened(folder, compose).model
    weights.save(model, tmp_path / "saved")
    assert (tmp_path / "saved" / "generation_config.json").read_text() == text
    assert model.generation_config.eos_token_id == settings.get("eos_token_id", model.generation_config.eos_token_id)


def test_generation_settings_in_an_old_config(copied, compose, tmp_path):
    folder, _ = copied()
    (folder / "generation_config.json").unlink()
    config_of(folder, temperature=0.7, max_length=30)
    weights.save(opened(folder, compose).model, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "generation_config.json").read_text())["temperature"] == 0.7


def test_a_head_that_shares_memory_and_is_not_tied_is_saved(copied, compose, tmp_path):
    folder, _ = copied("qwen2")
    loaded = opened(folder, compose)
    loaded.model.lm_head.weight = loaded.model.model.embed_tokens.weight
    weights.save(loaded.model, tmp_path / "saved")
    loaded.tokenizer.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert torch.equal(saved["lm_head.weight"], saved["model.embed_tokens.weight"])
    assert torch.equal(opened(tmp_path / "saved", compose).model.lm_head.weight, saved["lm_head.weight"])


def test_what_is_written_is_read_back(copied, compose, tmp_path, monkeypatch):
    folder, _ = copied()
    model = opened(folder, compose).model
    write = type(model).save_pretrained

    def damaged(self, place, **options):
        write(self, place, **options)
        tensors = load_file(place / "model.safetensors")
        tensors[UP][0, 0] += 1
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(type(model), "save_pretrained", damaged)
    with pytest.raises(UserError, match=f"{UP} on disk is not what was written"):
        weights.save(model, tmp_path / "saved")


def test_an_adapter_that_is_not_all_there(copied, compose, tmp_path):
    from peft import LoraConfig, get_peft_model

    from idp.recover import lora

    folder, _ = copied()
    loaded = opened(folder, compose)
    adapted = get_peft_model(loaded.model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "adapter")
    lora.attach(opened(folder, compose), tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = next(name for name in sorted(tensors) if "lora_B" in name)
    save_file(
        {other: tensors[other] for other in tensors if other != name}, tmp_path / "adapter/adapter_model.safetensors"
    )
    with pytest.raises(UserError, match=f"the adapter has no tensor {name}"):
        lora.attach(opened(folder, compose), tmp_path / "adapter")
    save_file(tensors | {"else": torch.zeros(2)}, tmp_path / "adapter/adapter_model.safetensors")
    with pytest.raises(UserError, match="the adapter has a tensor else, for which"):
        lora.attach(opened(folder, compose), tmp_path / "adapter")


def test_auto_is_float16_on_a_gpu_that_only_emulates_bfloat16(compose, monkeypatch):
    config = replace(compose().model, dtype="auto", device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for native, dtype in ((False, torch.float16), (True, torch.bfloat16)):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, native=native: including_emulation or native,
        )
        assert models.dtype_of(config) is dtype
