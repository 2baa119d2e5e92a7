"""Checkpoints that others compressed: each format's weights are found exactly, measured, and refused if they misfit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from idp.compress import external
from idp.compress.formats import claims
from idp.errors import UserError
from idp.models.unpacking import tensors
from idp.models.weight_files import WeightFiles
from tests.compress import packers

QUICK = ("model=tiny_llama", "task=arc_easy", "budget=smoke", "tracker=none", "evaluation.perplexity=[]")
LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="session")
def dense(tmp_path_factory, compose):
    """The folder of the tiny model that all of these are compressions of."""
    from idp import models
    from idp.store import Store

    config = compose("model=tiny_llama").model
    return models.model_folder(models.load(config, models.find_model(config), Store(tmp_path_factory.mktemp("store"))))


@pytest.fixture
def run_external(run_here, tmp_path):
    """`run_external(path, *overrides)`: a whole run on a checkpoint; its record, its weights and `weights.json`."""

    def run(path: Path, *overrides: str):
        record = run_here(*QUICK, "compressor=external", f"compressor.path={path}", "baselines=false", *overrides)
        place = tmp_path / "outputs" / "store" / "compress" / record["idp"]["stages"]["compress"]["key"]
        weights = load_file(place / "model" / "model.safetensors")
        return record, weights, json.loads((place / "weights.json").read_text())

    return run


def same(found, meant):
    assert found.keys() == meant.keys()
    for name, tensor in meant.items():
        assert torch.equal(found[name], tensor.to(found[name].dtype)), name


def disk(folder):
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("bits", "group", "act_order", "version"),
    [(2, 32, False, 2), (3, 32, True, 1), (4, 32, True, 2), (4, -1, False, 1), (8, 64, False, 1)],
)
def test_gptq(bits, group, act_order, version, dense, run_external, tmp_path):
    folder = tmp_path / "theirs"
    meant = packers.gptq(dense, folder, bits=bits, group=group, act_order=act_order, version=version)
    record, weights, measured = run_external(folder)
    same(weights, meant)
    row = measured["layers"][LAYER]
    assert row["bits"] == bits and row["distinct_values"] <= 2**bits
    # codes, a 16-bit scale and a zero point for each group, g_idx, and AutoGPTQ's bias of zeros
    columns = 128 if group == -1 else group
    assert row["bits_per_weight"] == bits + (16 + bits) / columns + 32 / 64 + 16 / 128
    assert record["idp"]["weights"]["packed_bytes"] == disk(folder)
    assert measured["group_size"] == (None if act_order or group == -1 else group)  # rows are of two widths
    assert record["idp"]["name"].startswith("tiny_llama-external-theirs-none")
    assert measured["external"]["format"] == f"gptq v{version}"


def test_awq(dense, run_external, tmp_path):
    meant = packers.awq(dense, tmp_path / "theirs", group=32)
    _, weights, measured = run_external(tmp_path / "theirs")
    same(weights, meant)
    assert measured["layers"][LAYER]["bits_per_weight"] == 4 + (16 + 4) / 32
    assert measured["layers"][LAYER]["distinct_values"] <= 16


def test_gguf_with_mixed_types(dense, run_external, tmp_path):
    kinds = dict.fromkeys(packers.LAYERS, "Q4_0") | {"down_proj": "Q8_0", "v_proj": "F16"}
    meant = packers.gguf_file(dense, tmp_path / "mixed.gguf", kinds)
    record, weights, measured = run_external(tmp_path / "mixed.gguf")
    same(weights, meant)
    layers = measured["layers"]
    assert layers[LAYER]["bits_per_weight"] == 8.5 and layers[LAYER]["bits"] == 8
    assert layers["model.layers.0.self_attn.q_proj"]["bits_per_weight"] == 4.5
    assert layers["model.layers.0.self_attn.v_proj"]["bits_per_weight"] == 16
    assert layers["model.layers.0.self_attn.q_proj"]["distinct_values"] <= 16
    assert record["idp"]["weights"]["packed_bytes"] == (tmp_path / "mixed.gguf").stat().st_size
    assert measured["external"]["format"] == "GGUF (2 x F16, 10 x Q4_0, 2 x Q8_0)"
    assert "-external-mixed-" in record["idp"]["name"]


def test_pruned_weights_and_a_repair_on_them(dense, run_external, tmp_path):
    tensors = load_file(dense / "model.safetensors")
    for name, tensor in tensors.items():
        if name.split(".")[-2] in packers.LAYERS:
            tensor[:, ::2] = 0
    folder = packers.copy_model(dense, tmp_path / "pruned", tensors, None)
    record, weights, measured = run_external(
        folder, "recovery=prompt", "recovery.length=3", "recovery.training.steps=2"
    )
    same(weights, tensors)
    assert record["idp"]["weights"]["sparsity"] == 0.5 and measured["patterns"]["2:4"] == 1
    assert record["idp"]["parameters"]["added"] == 3 * 64 and measured["external"]["format"] == "plain"
    assert record["idp"]["weights"]["effective_bytes"] < 0.7 * record["idp"]["weights"]["packed_bytes"]


def test_our_own_export(run_here, run_external, tmp_path):
    from idp.export.checkpoint import export
    from idp.export.options import ExportOptions

    own = run_here(*QUICK, "compressor=gptq3", "compressor.quantization.symmetric=true")
    runs = tmp_path / "outputs" / "runs" / own["idp"]["name"]
    export(ExportOptions(str(runs), str(tmp_path / "export")))
    stored = tmp_path / "outputs" / "store" / "compress" / own["idp"]["stages"]["compress"]["key"] / "model"
    record, weights, measured = run_external(tmp_path / "export")
    same(weights, {name: tensor[...] for name, tensor in tensors(WeightFiles(stored, "the store")).items()})
    assert record["results"] == own["results"]
    assert measured["layers"][LAYER]["bits"] == 3 and measured["layers"][LAYER]["distinct_values"] <= 8
    assert measured["sparsity"] == own["idp"]["weights"]["sparsity"]


@pytest.mark.parametrize("scheme", ["W8A8", "W4A16"])
def test_llmcompressor_s_own_checkpoints(scheme, dense, run_external, tmp_path, caplog):
    from compressed_tensors.compressors.pack_quantized import unpack_from_int32
    from llmcompressor import oneshot
    from llmcompressor.core import reset_session
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    reset_session()
    model = AutoModelForCausalLM.from_pretrained(dense)
    recipe = QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head", "re:.*[qkvo]_proj"])
    if scheme == "W4A16":  # groups of 128, which the inner layers alone are wide enough for
        recipe = QuantizationModifier(targets=["re:.*down_proj"], scheme=scheme, ignore=["lm_head"])
    oneshot(model=model, recipe=recipe, output_dir=str(tmp_path / "theirs"), log_dir=None)
    reset_session()
    stored = load_file(tmp_path / "theirs" / "model.safetensors")
    scale = stored[f"{LAYER}.weight_scale"].float()
    if scheme == "W8A8":
        meant = stored[f"{LAYER}.weight"].float() * scale
        assert stored[f"{LAYER}.weight"].dtype is torch.int8
    else:
        meant = unpack_from_int32(stored[f"{LAYER}.weight_packed"], 4, torch.Size([64, 128])).float() * scale
    _, weights, measured = run_external(tmp_path / "theirs")
    torch.testing.assert_close(weights[f"{LAYER}.weight"], meant, atol=0, rtol=1e-6)
    assert measured["layers"][LAYER]["bits"] == (8 if scheme == "W8A8" else 4)
    assert measured["layers"]["model.layers.0.self_attn.q_proj"]["bits"] is None
    assert ("activations are quantised as well" in caplog.text) == (scheme == "W8A8")
    faults = {
        f"{LAYER}.weight_scale": (scale[:1], r"weight_scale is \[1, 1\], for \[64, 128\] in groups of 128"),
        "model.layers.0.mlp.foo": (torch.zeros(2), "it has a tensor model.layers.0.mlp.foo, for which"),
    }
    for name, (tensor, message) in faults.items():
        save_file(stored | {name: tensor.clone()}, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=message):
            run_external(tmp_path / "theirs")


def test_the_key_is_the_content_s(dense, compose, tmp_path):
    packers.awq(dense, tmp_path / "theirs", group=32)
    shutil.copytree(tmp_path / "theirs", tmp_path / "copy")

    def identity(name):
        return external.find_checkpoint(
            compose("compressor=external", f"compressor.path={tmp_path / name}").compressor
        ).identity

    assert identity("theirs") == identity("copy")
    tensors = load_file(tmp_path / "copy" / "model.safetensors")
    tensors[f"{LAYER}.scales"][0, 0] *= 2
    save_file(tensors, tmp_path / "copy" / "model.safetensors")
    assert identity("theirs") != identity("copy")


def test_one_from_the_hub(dense, compose, tmp_path, monkeypatch):
    from types import SimpleNamespace

    import huggingface_hub

    meant = packers.awq(dense, tmp_path / "theirs", group=32)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(sha="abc123"))
    asked = {}

    def snapshot_download(path, revision, allow_patterns):
        asked.update(path=path, revision=revision, allow_patterns=allow_patterns)
        return str(tmp_path / "theirs")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    product = product_of("you/theirs-awq", compose, tmp_path)
    same(load_file(product.path / "model" / "model.safetensors"), meant)
    assert asked["path"] == "you/theirs-awq" and asked["revision"] == "abc123"
    assert "*.bin" not in asked["allow_patterns"]
    source = {"kind": "hub", "repository": "you/theirs-awq", "commit": "abc123"}
    assert product.manifest["config"]["external"] == source


def test_one_on_the_hub_that_is_not_read(compose, monkeypatch):
    from types import SimpleNamespace

    import huggingface_hub

    info = SimpleNamespace(sha="abc123", config={"quantization_config": {"quant_method": "hqq"}})
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    with pytest.raises(UserError, match=r"compressor\.path=you/theirs: quant_method=hqq is not read; these are"):
        external.find_checkpoint(compose("compressor=external", "compressor.path=you/theirs").compressor)


def test_a_gguf_file_of_another_function(dense, compose, tmp_path):
    own = copied(dense, tmp_path / "own", rope_parameters=ROPE | {"rope_theta": 5e4})
    packers.gguf_file(dense, tmp_path / "theirs.gguf", dict.fromkeys(packers.LAYERS, "Q4_0"))
    with pytest.raises(UserError, match="rope_theta is 10000.0 there and 50000.0 in own"):
        product_of(tmp_path / "theirs.gguf", compose, tmp_path, own)


def test_labels(compose):
    for path, name in (("/models/mine-4bit/", "mine-4bit"), ("you/theirs", "theirs"), ("a/b.Q4_0.gguf", "b.Q4_0")):
        assert compose("compressor=external", f"compressor.path={path}").compressor.label == f"external-{name}"


def test_a_claim_that_the_weights_do_not_bear_out():
    weight = torch.arange(64.0).reshape(2, 32)
    found = claims.Decompressed("gptq", {}, {"layer": claims.FormatClaim(4, 16, 32)}, {"layer": 32}, 100)
    assert claims.measure(found, [("layer", weight)])["layers"]["layer"]["distinct_values"] == 16
    for group in (32, -1, "tensor", torch.zeros(32, dtype=torch.long)):
        found.claims["layer"] = claims.FormatClaim(4, group, 32)
        with pytest.raises(UserError, match="layer claims 4 bits and holds (32|64) distinct values"):
            claims.measure(found, [("layer", weight)])


def edited(folder, **changes):
    """The folder with changes to its config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def quantised(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    return edited(folder, quantization_config=config.get("quantization_config", {}) | changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: edited(f, model_type="opt"), "it is a opt, tiny_llama is a llama"),
        (lambda f: edited(f, hidden_size=96), "hidden_size is 96 there and 64 in tiny_llama"),
        (lambda f: edited(f, vocab_size=300), "vocab_size is 300 there and 257 in tiny_llama"),
        (lambda f: edited(f, num_attention_heads=8, head_dim=8), "num_attention_heads is 8 there and 4"),
        (lambda f: edited(f, attention_bias=True), "only one of them has model.layers.0.self_attn.q_proj.bias"),
        (lambda f: quantised(f, quant_method="bitsandbytes"), "quant_method=bitsandbytes is not read; these are: comp"),
        (lambda f: quantised(f, checkpoint_format="marlin"), "GPTQ in Marlin's layout"),
        (lambda f: quantised(f, is_marlin_format=True), "GPTQ in Marlin's layout"),
        (
            lambda f: quantised(f, checkpoint_format="bitblas"),
            "checkpoint_format=bitblas is not read; gptq and gptq_v2",
        ),
        (lambda f: quantised(f, quant_method="awq", version="gemv"), "AWQ in the gemv layout is not read; gemm is"),
        (
            lambda f: quantised(f, quant_method="compressed-tensors", sparsity_config={"format": "sparse-24-bitmask"}),
            r"stored sparse \(sparse-24-bitmask\), which compressed-tensors no longer reads",
        ),
        (
            lambda f: quantised(
                f, quant_method="compressed-tensors", config_groups={"group_0": {"weights": {"actorder": "group"}}}
            ),
            "actorder=group, which compressed-tensors no longer reads",
        ),
        (lambda f: edited(f, quantization_config=None), "qweight is packed, but neither config.json nor"),
        (lambda f: (f / "config.json").unlink(), "it has no config.json"),
        (lambda f: (f / "model.safetensors").rename(f / "model.pt"), r"its weights are pickled \(model\.pt\)"),
        (lambda f: (f / "model.safetensors").rename(f / "model.gguf"), "a folder with a GGUF file; name the file"),
        (lambda f: (f / "model.safetensors").unlink(), "it has no safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "cannot be read as safetensors"),
        (lambda f: quantised(f, bits=8), "_proj: qweight has 4 bits, the config says 8"),
        (lambda f: without(f, f"{LAYER}.scales"), f"has no tensor {LAYER}.scales"),
        (lambda f: without(f, "model.norm.weight"), "does not fit tiny_llama: it has no model.norm.weight"),
        (lambda f: reshaped(f, f"{LAYER}.qweight", 3), r"down_proj: qweight is \[13, 64\], which is \[64, 128\] at no"),
        (lambda f: reshaped(f, f"{LAYER}.scales", 1), r"down_proj: 3 groups of scales do not cover its 128 columns"),
        (lambda f: reshaped(f, "model.norm.weight", 1), r"model.norm.weight is \[63\] there and \[64\] in tiny_llama"),
        (lambda f: broken(f, "model.norm.weight"), "model.norm.weight .* NaN or infinite"),
        (lambda f: broken(f, f"{LAYER}.bias"), f"tiny_llama has no {LAYER}.bias"),
        (lambda f: broken(f, "lm_head.weight"), "its lm_head.weight is not its model.embed_tokens.weight"),
    ],
)
def test_one_line_for_each_mistake(change, message, dense, compose, tmp_path):
    folder = tmp_path / "theirs"
    packers.gptq(dense, folder, bits=4, group=32, act_order=True, version=1)
    change(folder)
    with pytest.raises(UserError, match=message):
        product_of(folder, compose, tmp_path)


def without(folder, name):
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")


def reshaped(folder, name, less):
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name][:-less].clone()
    save_file(tensors, folder / "model.safetensors")


def broken(folder, name):
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = torch.full_like(tensors.get(name, tensors["model.embed_tokens.weight"]), 1.0)
    if name == "model.norm.weight":
        tensors[name][3] = float("nan")
    save_file(tensors, folder / "model.safetensors")


def product_of(path, compose, tmp_path, own=None):
    """All that a run does with a checkpoint up to its product; `own` is the dense model's folder."""
    from idp import models
    from idp.store import Store

    model = ("model=tiny_llama",) if own is None else ("model=local", f"model.path={own}", f"model.name={own.name}")
    config = compose(*model, "compressor=external", f"compressor.path={path}")
    source = external.find_checkpoint(config.compressor)
    store = Store(tmp_path / "store")
    loaded = models.load(config.model, models.find_model(config.model), store)
    external.check(
        config.compressor, source, config.model, models.open_empty(models.model_folder(loaded), config.model)
    )
    return external.compress(config.compressor, source, config.model, loaded, store)


def test_a_head_that_is_tied_here_and_stored_there(dense, compose, tmp_path):
    tensors = load_file(dense / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    folder = packers.copy_model(dense, tmp_path / "theirs", tensors, None)
    edited(folder, tie_word_embeddings=False)
    product = product_of(folder, compose, tmp_path)
    same(load_file(product.path / "model" / "model.safetensors"), load_file(dense / "model.safetensors"))


def copied(source, folder, change=None, **config):
    """A copy of a model's folder with changes to its tensors and its config."""
    shutil.copytree(source, folder)
    edited(folder, **config)
    if change is not None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def its_head(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def another_head(tensors):
    tensors["lm_head.weight"] = 2 * tensors["model.embed_tokens.weight"]


def no_head(tensors):
    del tensors["lm_head.weight"]


@pytest.mark.parametrize(
    ("family", "change", "tied", "message"),
    [
        ("llama", None, False, r"has no lm_head\.weight, and its config does not tie it"),
        ("llama", another_head, False, r"its lm_head\.weight is not its model\.embed_tokens\.weight, which this model"),
        ("qwen2", no_head, False, r"has no lm_head\.weight, and its config does not tie it"),
        ("qwen2", None, True, r"its lm_head\.weight is not its model\.embed_tokens\.weight, which its own config ties"),
    ],
)
def test_heads_that_do_not_fit(family, change, tied, message, model_folders, compose, tmp_path):
    own = model_folders(family)
    folder = copied(own, tmp_path / "theirs", change, tie_word_embeddings=tied)
    with pytest.raises(UserError, match=message):
        product_of(folder, compose, tmp_path, own)


def test_a_head_that_is_tied_there_and_stored_here(model_folders, compose, tmp_path):
    from idp import models

    own = model_folders("qwen2")
    folder = copied(own, tmp_path / "theirs", no_head, tie_word_embeddings=True)
    product = product_of(folder, compose, tmp_path, own)
    saved = load_file(product.path / "model" / "model.safetensors")
    assert torch.equal(saved["lm_head.weight"], saved["model.embed_tokens.weight"])
    opened = models.open_model(product.path / "model", compose("model.dtype=float32").model).model
    assert torch.equal(opened.lm_head.weight, saved["lm_head.weight"])


ROPE = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (
            "llama",
            {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
            r"\(rope_scaling\)\.factor is 4.0 there and abs",
        ),
        (
            "llama",
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            r"rope_parameters \(rope_scaling\)\.factor is 2.0",
        ),
        ("llama", {"rope_parameters": ROPE | {"rope_theta": 5e4}}, r"rope_theta is 50000.0 there and 10000.0 in llama"),
        ("llama", {"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05 there and 1e-06 in llama"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is gelu there and silu in llama"),
        ("mistral", {"sliding_window": 48}, "sliding_window is 48 there and 24 in mistral"),
        ("mistral", {"sliding_window": None}, "sliding_window is absent there and 24 in mistral"),
        ("gemma2", {"final_logit_softcapping": 20.0}, "final_logit_softcapping is 20.0 there and 30.0"),
        ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping is absent there and 50.0"),
        ("gemma2", {"query_pre_attn_scalar": 32}, "query_pre_attn_scalar is 32 there and 16"),
        (
            "gemma3_text",
            {"layer_types": ["full_attention"] * 2},
            r"layer_types\[0\] is full_attention there and sliding",
        ),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before is False there and True in opt"),
    ],
)
def test_a_config_of_another_function(family, changes, message, model_folders, compose, tmp_path):
    own = model_folders(family)
    with pytest.raises(UserError, match=f"does not fit {family}: .*{message}"):
        product_of(copied(own, tmp_path / "theirs", **changes), compose, tmp_path, own)


@pytest.mark.parametrize(
    "changes",
    [
        {"torch_dtype": "float16", "use_cache": False, "eos_token_id": [0, 1], "_name_or_path": "mine"},
        {"attention_dropout": 0.1, "initializer_range": 0.5, "max_position_embeddings": 4096, "hidden_act": "swish"},
        {"unsloth_version": "2025.1", "rope_parameters": ROPE | {"rope_theta": 10000.01}},
    ],
)
def test_a_config_of_the_same_function(changes, model_folders, compose, tmp_path):
    own = model_folders("llama")
    product = product_of(copied(own, tmp_path / "theirs", **changes), compose, tmp_path, own)
    same(load_file(product.path / "model" / "model.safetensors"), load_file(own / "model.safetensors"))


def test_the_window_is_compared_where_it_shapes_positions(model_folders, compose, tmp_path):
    scaled = {"rope_parameters": ROPE | {"rope_type": "dynamic", "factor": 2.0}}
    own = copied(model_folders("llama"), tmp_path / "own", **scaled)
    with pytest.raises(UserError, match="max_position_embeddings is 4096 there and 2048 in own"):
        product_of(copied(own, tmp_path / "theirs", max_position_embeddings=4096), compose, tmp_path, own)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("stored", "stated"), [(1, None), (1, "gptq"), (2, "gptq_v2"), (2, "gptq"), (1, "gptq_v2")])
def test_zero_points_are_read_as_they_are_stored(bits, symmetric, stored, stated, dense, tmp_path):
    """By their distance to the dense weights, whatever the config states; it is said where that is something else."""
    grid = {"bits": bits, "group": 32, "symmetric": symmetric, "act_order": bits == 4}
    meant = packers.gptq_rounded(dense, tmp_path / "theirs", **grid, stored=stored, stated=stated)
    found = read_gptq(tmp_path / "theirs", dense)
    same(found.state, meant)
    assert found.kind == f"gptq v{stored}"
    assert len(found.notes) == (stored != (2 if stated == "gptq_v2" else 1))


def test_zero_points_of_a_symmetric_grid_that_is_far_from_the_dense_weights(dense, tmp_path):
    """The stored zeros alone tell: 8 is the middle of 16 codes."""
    folder = tmp_path / "theirs"
    packers.gptq_rounded(dense, folder, bits=4, group=32, symmetric=True, stored=2, stated="gptq")
    generator = torch.Generator().manual_seed(0)

    def elsewhere(name):
        return torch.randn(load_file(dense / "model.safetensors")[f"{name}.weight"].shape, generator=generator)

    found = read_gptq(folder, dense, elsewhere)
    assert found.kind == "gptq v2" and "middle codes of symmetric grids" in found.notes[0]
    quantised(folder, sym=False)
    found = read_gptq(folder, dense, elsewhere)
    assert found.kind == "gptq v1" and "neither its zero points nor the dense weights tell" in found.notes[0]


def read_gptq(folder, dense, weight=None):
    from idp.compress.formats import integers
    from idp.compress.formats.checkpoint import Checkpoint

    checkpoint, own = Checkpoint(folder), load_file(dense / "model.safetensors")
    shapes = {
        name.removesuffix(".weight"): list(tensor.shape)
        for name, tensor in own.items()
        if name.split(".")[-2] in packers.LAYERS
    }
    weight = weight or (lambda name: own[f"{name}.weight"])
    return integers.read_gptq(checkpoint, checkpoint.quantization(), shapes, torch.float32, weight)


def test_a_group_size_that_does_not_divide(dense, compose, tmp_path):
    """The last group of each row is shorter, as AutoGPTQ has it: 48 and 16 of 64 columns."""
    grid = {"bits": 4, "group": 48, "symmetric": False, "stored": 1, "stated": "gptq"}
    meant = packers.gptq_rounded(dense, tmp_path / "theirs", **grid)
    product = product_of(tmp_path / "theirs", compose, tmp_path)
    same(load_file(product.path / "model" / "model.safetensors"), meant)
    row = product.read("weights.json")["layers"][LAYER]
    assert row["bits"] == 4 and row["distinct_values"] <= 16


def put(part, change):
    """A fault in one of a layer's packed tensors."""

    def fault(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors[f"{LAYER}.{part}"] = change(tensors[f"{LAYER}.{part}"]).clone()
        save_file(tensors, folder / "model.safetensors")

    return fault


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (put("g_idx", lambda t: torch.ones_like(t)), "g_idx puts 128 columns in a group, the config says 32"),
        (put("g_idx", lambda t: t - 1), "4 groups of scales do not cover its 128 columns: g_idx names others"),
        (put("g_idx", lambda t: t.float()), r"g_idx is float32 \[128\], not a group for each of 128 columns"),
        (put("g_idx", lambda t: t[:5]), r"g_idx is int32 \[5\], not a group for each of 128 columns"),
        (put("qweight", lambda t: t.long()), r"qweight is int64 \[16, 64\], not two-dimensional int32 words"),
        (put("qzeros", lambda t: t[:, :3]), r"scales are \[4, 64\] and qzeros \[4, 3\], for 64 rows"),
        (put("scales", lambda t: t.to(torch.int8)), r"scales are int8 \[4, 64\], not two-dimensional numbers"),
        (lambda f: without(f, f"{LAYER}.qzeros"), f"has no tensor {LAYER}.qzeros"),
        (lambda f: without(f, f"{LAYER}.qweight"), f"it has no {LAYER}.weight"),
        (lambda f: without(f, f"{LAYER}.g_idx"), "desc_act orders its columns by a g_idx, which it does not have"),
        (lambda f: quantised(f, group_size=64), "4 groups of scales do not cover its 128 columns in groups of 64"),
        (lambda f: quantised(f, group_size=0), "group_size=0 is no number of columns"),
    ],
)
def test_packed_tensors_that_do_not_fit(fault, message, dense, compose, tmp_path):
    folder = tmp_path / "theirs"
    packers.gptq_rounded(dense, folder, bits=4, group=32, symmetric=True, stored=1, stated="gptq", act_order=True)
    fault(folder)
    with pytest.raises(UserError, match=message):
        product_of(folder, compose, tmp_path)


def test_a_g_idx_of_zeros_orders_nothing(dense, tmp_path):
    meant = packers.gptq_rounded(dense, tmp_path / "a", bits=4, group=32, symmetric=True, stored=1, stated="gptq")
    put("g_idx", torch.zeros_like)(tmp_path / "a")
    same(read_gptq(tmp_path / "a", dense).state, meant)


@pytest.mark.parametrize("location", ["input", "output", "q_attn", "k_cache", "weight_input", "weight_output"])
def test_transforms_of_activations(location, dense, tmp_path):
    from idp.compress.formats.checkpoint import Checkpoint

    packers.awq(dense, tmp_path / "theirs", group=32)
    groups = {"R3": {"type": "hadamard", "apply": [{"targets": ["self_attn"], "location": location}]}}
    quantised(tmp_path / "theirs", quant_method="compressed-tensors", transform_config={"config_groups": groups})
    if location.startswith("weight"):  # they are in the weights already
        assert Checkpoint(tmp_path / "theirs").quantization()["quant_method"] == "compressed-tensors"
    else:
        with pytest.raises(UserError, match=rf"R3 rotates activations as the model runs \(location={location}\)"):
            Checkpoint(tmp_path / "theirs").quantization()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_plain_weights_that_are_no_plain_numbers(dtype, dense, compose, tmp_path):
    def stored(tensors):
        tensors[f"{LAYER}.weight"] = tensors[f"{LAYER}.weight"].to(dtype)

    with pytest.raises(UserError, match=rf"{LAYER}.weight is stored as (I8|F8_E4M3), and no config says how"):
        product_of(copied(dense, tmp_path / "theirs", stored), compose, tmp_path)


def test_a_stale_index_is_not_read(dense, compose, tmp_path):
    folder = copied(dense, tmp_path / "theirs")
    tensors = load_file(folder / "model.safetensors")
    save_file({name: 0 * tensor for name, tensor in tensors.items()}, folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    same(load_file(product_of(folder, compose, tmp_path).path / "model" / "model.safetensors"), tensors)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="has no weight_map from tensors to files"):
        product_of(folder, compose, tmp_path)


def test_a_model_without_linear_layers(model_folders, compose, tmp_path):
    own = model_folders("gpt2")
    with pytest.raises(UserError, match=r"GPT2LMHeadModel has no torch\.nn\.Linear layers"):
        product_of(copied(own, tmp_path / "theirs"), compose, tmp_path, own)


def swapped(described):
    vocabulary = described["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def lowered(described):
    described["normalizer"] = {"type": "Lowercase"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swapped, "in its tokenizer 'a' is token 66, in tiny_llama it is 65"),
        (lowered, r"their tokenizers give one text other tokens: \['t', 'h', 'e'\] there and \['T', 'h', 'e'\]"),
    ],
)
def test_a_tokenizer_of_another_model(change, message, dense, compose, tmp_path):
    folder = copied(dense, tmp_path / "theirs")
    described = json.loads((folder / "tokenizer.json").read_text())
    change(described)
    (folder / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=message):
        product_of(folder, compose, tmp_path)


def test_its_own_generation_settings_go_with_it(dense, compose, tmp_path):
    folder, settings = copied(dense, tmp_path / "theirs"), '{"temperature": 0.6, "eos_token_id": [0, 1, 2]}'
    (folder / "generation_config.json").write_text(settings)
    product = product_of(folder, compose, tmp_path)
    assert (product.path / "model" / "generation_config.json").read_text() == settings


def test_options_that_do_not_go_together(compose):
    with pytest.raises(UserError, match=r"compressor\.path is not set"):
        compose("compressor=external")
    with pytest.raises(UserError, match="compressed already; drop compressor.quantization"):
        compose("compressor=gptq4", "compressor.path=/models/mine")
    with pytest.raises(UserError, match=r"of what\? Add compressor\.path"):
        compose("compressor=gptq4", "compressor.revision=main")


def test_paths_that_are_not_there(compose, monkeypatch, tmp_path):
    from httpx import ConnectError
    from huggingface_hub import HfApi

    def unreachable(*_, **__):
        raise ConnectError("Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    monkeypatch.chdir(tmp_path)
    for path, message in (
        ("/nowhere", "compressor.path=/nowhere: no such folder or GGUF file"),
        ("mine.gguf", "compressor.path=mine.gguf: no such folder or GGUF file"),
        ("exports/mine", r"compressor.path=exports/mine: .*hub.*\(there is no folder .*/exports/mine either\)"),
    ):
        with pytest.raises(UserError, match=message):
            external.find_checkpoint(compose("compressor=external", f"compressor.path={path}").compressor)
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"bad\.gguf: cannot be read as a GGUF model"):
        product_of(tmp_path / "bad.gguf", compose, tmp_path)
