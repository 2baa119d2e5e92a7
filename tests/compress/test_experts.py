"""Mixtures of experts: every expert is compressed, counted, saved and read back as any other layer is."""

import copy
import logging

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from idp.compress import experts, recipe
from idp.compress.joint import quantize_kept
from idp.compress.magnitude import smallest
from idp.compress.pack import pack
from idp.compress.saved import SavedWeights
from idp.compress.terminal import quiet
from tests.compress.mixtures import MIXTURES, make_mixture


@pytest.fixture(scope="session")
def mixtures(tmp_path_factory):
    """`mixtures(family)`: the folder of a tiny mixture, made once per session."""
    root, made = tmp_path_factory.mktemp("mixtures"), {}

    def folder(family):
        if family not in made:
            made[family] = make_mixture(family, root / family)
        return made[family]

    return folder


@pytest.fixture(scope="session")
def compressed(mixtures, compress_with):
    """`compressed(family, *overrides)`: the compress stage's product of a tiny mixture."""

    def product(family, *overrides, **kwargs):
        where = ["model=local", f"model.path={mixtures(family)}", f"model.name={family}", "model.dtype=float32"]
        return compress_with(*where, *overrides, **kwargs)

    return product


def opened(folder):
    from transformers import AutoModelForCausalLM

    model, about = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not about["missing_keys"] and not about["unexpected_keys"] and not about["mismatched_keys"]
    return model.eval().requires_grad_(False)


def weights_of(model):
    """Every compressed weight by name, of a model that is opened as anybody would."""
    with experts.as_linear(model):
        return {name: layer.weight.clone() for name, layer in recipe.compressed_layers(model).items()}


@pytest.mark.parametrize("family", MIXTURES)
def test_taken_apart_it_is_the_same_function_and_stacked_the_same_weights(family, mixtures, calibration):
    model = opened(mixtures(family))
    before, logits = {name: p.clone() for name, p in model.state_dict().items()}, model(calibration).logits
    inside = experts.places(model)
    experts.split(model)
    torch.testing.assert_close(model(calibration).logits, logits, atol=1e-5, rtol=0)
    layers = recipe.compressed_layers(model)
    saved = SavedWeights(mixtures(family), inside)
    for name, layer in layers.items():  # read from the file by transformers' own conversion, to the last bit
        assert torch.equal(saved[f"{name}.weight"], layer.weight), name
    dense = {"lm_head", *experts.routers(model)}
    assert all(part in layers or part in dense for part, m in model.named_modules() if isinstance(m, nn.Linear))
    assert any(".mlp.gate" in name or ".router" in name for name in experts.routers(model))
    for layer in layers.values():
        layer.weight.data = layer.weight.data * 2  # as some methods leave it: elsewhere in memory
    experts.stack(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    doubled = {name for name in before if not torch.equal(after[name], before[name])}
    assert all(torch.equal(after[name], 2 * before[name]) for name in doubled)
    assert {name for name, p in after.items() if p.dim() == 3} <= doubled
    counted = sum(after[name].numel() for name in doubled)
    assert counted == sum(layer.weight.numel() for layer in layers.values())


CASES = [
    ("mixtral", "rtn8"),
    ("mixtral", "gptq3"),
    ("mixtral", "wanda50"),
    ("mixtral", "sparsegpt50_gptq4"),
    ("qwen3_moe", "rtn4"),
    ("qwen3_moe", "magnitude50"),
    ("qwen3_moe", "wanda_2of4"),
    ("qwen3_moe", "sparsegpt50_gptq4"),
    ("qwen2_moe", "gptq4"),
    ("granitemoe", "sparsegpt50"),
    ("deepseek_v3", "gptq4"),
]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_experts_are_what_the_compressor_claims_and_are_read_back_so(family, name, mixtures, compressed, compose):
    product = compressed(family, f"compressor={name}")
    compressor, weights = compose(f"compressor={name}").compressor, product.read("weights.json")
    dense, model = opened(mixtures(family)), opened(product.path / "model")
    found = weights_of(model)
    matrices = sum(p.numel() for p in dense.parameters() if p.dim() == 3)
    assert set(weights["layers"]) == set(found)
    assert weights["compressed_weights"] == sum(w.numel() for w in found.values()) > matrices > 0
    assert weights["parameters"] == sum(p.numel() for p in dense.parameters())
    zeros = sum(int((weight == 0).sum()) for weight in found.values())
    assert weights["sparsity"] == zeros / weights["compressed_weights"]
    for layer, weight in found.items():
        row = weights["layers"][layer]
        assert row["sparsity"] == float((weight == 0).double().mean()) >= (compressor.sparsity.level or 0)
        if compressor.quantization.method:
            groups = weight.reshape(-1, weights["group_size"])
            assert max(len(group.unique()) for group in groups) <= 2**compressor.quantization.bits
        assert 0 < row.get("reconstruction_error", 0.5) < 1
    touched = {n for n, p in dense.state_dict().items() if not torch.equal(p, model.state_dict()[n])}
    with experts.as_linear(dense):
        routing = {f"{router}.weight" for router in experts.routers(dense)}
    assert {n for n, p in dense.state_dict().items() if p.dim() == 3} <= touched
    assert not routing & touched and not any("norm" in n or "embed" in n or "head" in n for n in touched)
    if compressor.quantization.method:  # every value is a code on the grid that an export packs
        grids = load_file(product.path / "grids.safetensors")
        for layer, weight in found.items():
            pack(weight, grids[f"{layer}.scale"], grids[f"{layer}.zero_point"], compressor.quantization.bits, False)
    if name == "rtn8":  # experts that were lost on the way would show
        ids = torch.randint(1, 250, (4, 32), generator=torch.Generator().manual_seed(1))
        here, there = (each(ids).logits.log_softmax(-1) for each in (model, dense))
        assert nn.functional.kl_div(here, there, log_target=True, reduction="batchmean") / 32 < 1e-3


def seen_by(model, calibration, compressor):
    """Compresses in place; what each mixture was given while it was calibrated: states and experts, in one tensor."""
    group_size = recipe.check(compressor, model)
    experts.split(model)
    given = {name: [] for name, module in model.named_modules() if isinstance(module, experts.LinearExperts)}

    def note(calls, states):
        from llmcompressor.modifiers.utils.hooks import HooksMixin

        calibrating = any(each.count for each in reach.values())  # else it is held to its plain forward
        if calibrating and not HooksMixin._HOOKS_DISABLED:
            calls.append(states)

    for name, calls in given.items():
        module = model.get_submodule(name)
        module.register_forward_hook(lambda _, arguments, output, calls=calls: note(calls, arguments[:2]))
    with quiet():
        from idp.compress import oneshot
        from idp.compress.freeze import freeze
        from idp.compress.reach import Reach

        modifiers, names = recipe.build(compressor, group_size, model), list(recipe.compressed_layers(model))
        reach = {name: Reach(calibration.numel(), modifiers) for name in names}
        oneshot.run(model, [oneshot.Watching().of(reach), *modifiers], calibration)
        grids = freeze(model)
    joined = {name: [torch.cat(part) for part in zip(*calls, strict=True)] for name, calls in given.items()}
    return joined, grids, reach, group_size


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_gptq_of_an_expert_is_gptq_of_its_matrix_alone(family, mixtures, compose):
    tokens = torch.randint(1, 250, (32, 64), generator=torch.Generator().manual_seed(0))
    compressor = compose("compressor=gptq3", "compressor.quantization.group_size=32").compressor
    dense, model = opened(mixtures(family)), opened(mixtures(family))
    given, grids, reach, _ = seen_by(model, tokens, compressor)
    experts.split(dense)
    calibrated = 0
    for mixture, (states, index) in list(given.items())[:1]:  # behind it, the inputs are those of compressed layers
        for number, expert in dense.get_submodule(mixture).named_children():
            own = states[(index == int(number)).any(dim=1)]
            assert reach[f"{mixture}.{number}.gate_proj"].count == len(own)
            inner = nn.functional.silu(expert.gate_proj(own)) * expert.up_proj(own)
            for part, inputs in (("gate_proj", own), ("up_proj", own), ("down_proj", inner)):
                name = f"{mixture}.{number}.{part}"
                if reach[name].few:
                    continue
                calibrated += 1
                module = model.get_submodule(name)
                arguments = copy.copy(recipe.build(compressor, 32, dense)[0].config_groups["group_0"].weights)
                arguments.actorder = "static"
                weight = getattr(expert, part).weight
                expected, _ = quantize_kept(
                    weight.float().clone(),
                    inputs.T @ inputs,
                    torch.ones_like(weight, dtype=torch.bool),
                    grids[f"{name}.scale"],
                    grids[f"{name}.zero_point"],
                    arguments,
                )
                same = torch.isclose(module.weight, expected, atol=1e-6)
                assert same.float().mean() > 0.995, name
    assert calibrated >= 6


def to_nearest(weight, bits, group):
    """Asymmetric round to nearest in double precision, [rows, columns]."""
    grouped = weight.double().unflatten(1, (-1, group))
    low, high = grouped.amin(-1, keepdim=True).clamp(max=0), grouped.amax(-1, keepdim=True).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    zero = (-low / scale).round().clamp(0, 2**bits - 1)
    return (((grouped / scale).round() + zero).clamp(0, 2**bits - 1) - zero).mul(scale).flatten(1).float()


def test_round_to_nearest_of_an_expert_is_that_of_its_matrix_alone(mixtures, compressed):
    before = weights_of(opened(mixtures("qwen3_moe")))
    after = weights_of(opened(compressed("qwen3_moe", "compressor=rtn4").path / "model"))
    for name, weight in before.items():
        same = torch.isclose(after[name], to_nearest(weight, 4, 32), atol=1e-5)
        assert same.float().mean() > 0.999, name


@pytest.fixture(scope="module")
def with_a_lonely_expert(tmp_path_factory):
    """A Mixtral in which no token ever goes to expert 3."""
    folder = make_mixture("mixtral", tmp_path_factory.mktemp("lonely"))
    model = opened(folder)
    model.get_input_embeddings().weight.data[:, 0] = 8.0
    for layer in model.model.layers:
        layer.mlp.gate.weight.data[3] = 0
        layer.mlp.gate.weight.data[3, 0] = -50.0
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["gptq4", "sparsegpt50", "wanda50", "sparsegpt_2of4", "sparsegpt50_gptq4"])
def test_an_expert_that_no_token_reaches_is_rounded_or_pruned_by_itself(
    name, with_a_lonely_expert, compress_with, tmp_path, caplog
):
    where = ["model=local", f"model.path={with_a_lonely_expert}", "model.name=lonely", "model.dtype=float32"]
    with caplog.at_level(logging.WARNING):
        product = compress_with(*where, f"compressor={name}", folder=tmp_path)
    weights = product.read("weights.json")
    said = [line for line in caplog.messages if "too few calibration tokens" in line]
    assert len(said) == 1 and "gate_proj by 0" in said[0]  # the first of those that none reaches
    assert weights["expert_tokens"]["fewest"] == 0 and weights["expert_tokens"]["not_calibrated"] >= 6
    before, after = weights_of(opened(with_a_lonely_expert)), weights_of(opened(product.path / "model"))
    rounded = weights_of(opened(compress_with(*where, "compressor=rtn4", folder=tmp_path).path / "model"))
    for layer, row in weights["layers"].items():
        if ".experts.3." not in layer:
            continue
        assert row["calibration_tokens"] == 0 and row["calibrated"] is False and "dead_inputs" not in row
        weight, was = after[layer], before[layer]
        if name == "gptq4":
            assert torch.equal(weight, rounded[layer])
        elif name == "sparsegpt_2of4":
            assert torch.equal(weight, was.masked_fill(smallest(was, 0.5, "2:4"), 0))
        elif name == "sparsegpt50":  # 64 and 96 columns: one block, and so the smallest of the whole matrix
            assert 0 <= int((weight == 0).sum()) - weight.numel() // 2 <= 1
            assert was[weight == 0].abs().max() <= was[weight != 0].abs().min()
            assert torch.equal(weight[weight != 0], was[weight != 0])
        elif name == "wanda50":
            masks = torch.cat([smallest(old[None], 0.5, None) for old in was])
            assert torch.equal(weight, was.masked_fill(masks, 0))
        else:
            assert row["sparsity"] >= 0.5


def test_a_layer_that_every_token_reaches_is_calibrated_however_few_they_are(compress_with, compressed):
    weights = compress_with("compressor=gptq4").read("weights.json")
    assert "expert_tokens" not in weights and not any("calibrated" in row for row in weights["layers"].values())
    weights = compressed("qwen3_moe", "compressor=sparsegpt50_gptq4").read("weights.json")
    counts = {name: row.get("calibration_tokens") for name, row in weights["layers"].items()}
    assert all((".experts." in name) == (count is not None) for name, count in counts.items())
    for layer in (1, 2):  # every token goes to two of eight
        ends = f"model.layers.{layer}.mlp.experts."
        assert sum(c for n, c in counts.items() if n.startswith(ends) and n.endswith("up_proj")) == 2 * 8 * 64


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_dense_mixture_is_measured_whole(family, mixtures, compressed):
    weights, model = compressed(family, "compressor=none").read("weights.json"), opened(mixtures(family))
    assert weights["parameters"] == sum(p.numel() for p in model.parameters())
    assert set(weights["layers"]) == set(weights_of(model)) and weights["sparsity"] == 0


@pytest.mark.parametrize(
    ("family", "compressor", "repair"),
    [("mixtral", "gptq3", "prompt"), ("qwen3_moe", "sparsegpt50_gptq4", "lora")],
)
def test_a_whole_run_counts_evaluates_and_repairs_a_mixture(family, compressor, repair, mixtures, run_here, bridges):
    where = ["model=local", f"model.path={mixtures(family)}", f"model.name={family}", "model.dtype=float32"]
    quick = ["budget=smoke", "task=arc_easy", "evaluation.perplexity=[]", "tracker=none", "baselines=false"]
    record = run_here(*where, *quick, *bridges, f"compressor={compressor}", f"recovery={repair}")
    about, model = record["idp"], opened(mixtures(family))
    parameters = sum(p.numel() for p in model.parameters())
    assert about["parameters"]["model"] == parameters and about["parameters"]["added"] > 0
    weights = about["weights"]
    assert weights["compressed_weights"] == sum(w.numel() for w in weights_of(model).values()) > 0.7 * parameters
    assert weights["expert_tokens"]["layers"] > 0 and weights["bits_per_weight"] < 5
    assert weights["packed_bytes"] < 4 * (parameters - weights["compressed_weights"]) + weights["compressed_weights"]
    assert weights["sparsity"] >= (0.5 if repair == "lora" else 0) and 0 < weights["reconstruction_error"] < 1
    assert 0 <= record["results"]["arc_easy"]["acc,none"] <= 1


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_experts_on_a_symmetric_grid_are_kept_packed(family, compressed, monkeypatch, tmp_path):
    from idp import models
    from idp.compress import kept
    from idp.config import Model

    seen, save = {}, kept.save
    monkeypatch.setattr(kept, "save", lambda model, *rest: seen.update(model.state_dict()) or save(model, *rest))
    product = compressed(family, "compressor=rtn4", "compressor.quantization.symmetric=true", folder=tmp_path)
    stored = product.read("weights.json")["stored"]
    assert stored["packed"] == len(product.read("weights.json")["layers"]) and not stored["dense"]
    config = Model(family, "local", None, None, "float32", "cpu", None, False, "auto", {})
    found = models.open_model(product.path / "model", config).model.state_dict()
    assert found.keys() == seen.keys() and all(torch.equal(found[name], seen[name]) for name in seen)
