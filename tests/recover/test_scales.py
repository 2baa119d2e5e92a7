"""Quantisation scales are trained and the integers kept: gradients, counts, zeros, packing, and who is refused."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import idp
from idp import models, plan
from idp.compress import pack
from idp.config import Claims
from idp.errors import UserError
from idp.models import LoadedModel
from idp.plan.sizes import repair_bytes
from idp.recover import opening, rescaling, stage
from idp.recover.nets.scaled_linear import ScaledLayer, scaled
from idp.recover.objective import text_loss
from idp.recover.scales import quantised
from idp.store import Store

from ..families import FAMILIES
from .conftest import SMALL

TOKENS = torch.tensor([[3, 4, 5, 6, 90, 17, 40, 41], [9, 8, 7, 6, 5, 4, 3, 2]])
SHORT = [f"recovery.training.{name}={value}" for name, value in SMALL.items()]
RTN = ("compressor=rtn3", "compressor.quantization.group_size=32")
JOINT = ("compressor=rtn4", "compressor.sparsity.method=magnitude", "compressor.sparsity.level=0.5")
# Of a LLaMA of two layers: q 64 x 64, k and v 32 x 64, o 64 x 64, gate and up 128 x 64, down 64 x 128, in groups of 32.
SCALES = 2 * ((64 + 32 + 32 + 64 + 128 + 128) * 2 + 64 * 4)


@pytest.fixture
def made(compose, text, tmp_path):
    """`made(*overrides)`: scales trained through the stage on a model that was quantised there, and all it is from."""

    def make(*overrides, report=None, store="store"):
        from idp.compress import stage as compressing

        few = ("compressor.calibration.samples=4", "compressor.calibration.length=32")
        config = compose("model=tiny_llama", "recovery=scales", *SHORT, *few, *(overrides or RTN))
        root = Store(tmp_path / store)
        dense = models.load(config.model, models.find_model(config.model), root)
        empty = models.open_empty(models.model_folder(dense), config.model)
        resolved = compressing.check(config.compressor, empty, text)
        compressed = compressing.compress(config.compressor, resolved, config.model, dense, text, root)
        stage.check(config.recovery, empty, text)
        repair = stage.recover(config.recovery, config.model, compressed, text, 0, root, report, dense=dense)
        claims = config.compressor.claims(resolved)
        return SimpleNamespace(config=config, compressed=compressed, repair=repair, empty=empty, claims=claims)

    return make


def opened(found, repair=True):
    product = found.repair if repair else None
    return opening.open_repaired(found.config.model, found.compressed, product, found.config.recovery)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_a_scale_is_its_group_s_weights_times_the_steps(dtype):
    draw = torch.Generator().manual_seed(0)
    steps = torch.randint(-7, 8, (6, 12), generator=draw).to(torch.int8)
    before = (torch.rand(6, 3, generator=draw) * 0.1 + 0.01).to(dtype)
    module, inputs = nn.Linear(12, 6).to(dtype), torch.randn(2, 5, 12, generator=draw).to(dtype)
    layer = ScaledLayer(module, before, steps)
    with torch.no_grad():
        layer.change.copy_(torch.randn(6, 3, generator=draw) * 0.1)
    weights = torch.randn(2, 5, 6, generator=draw).to(dtype)
    mine = inputs.clone().requires_grad_(True)
    with scaled([layer]):
        outputs = module(mine)
    (outputs * weights).sum().backward()
    assert "forward" not in vars(module)  # and computes as before
    scale = (before.float() * (1 + layer.change.detach())).to(dtype)
    weight = torch.stack([steps[:, column].to(dtype) * scale[:, column // 4] for column in range(12)], dim=1)
    theirs = inputs.clone().requires_grad_(True)
    plain = nn.functional.linear(theirs, weight, module.bias)
    (plain * weights).sum().backward()
    assert torch.equal(outputs, plain)
    torch.testing.assert_close(mine.grad, theirs.grad)
    of_weight = weights.flatten(0, 1).float().T @ inputs.flatten(0, 1).float()  # [out, in]
    for row in range(6):
        for group in range(3):
            by_hand = sum(of_weight[row, column] * steps[row, column] for column in range(4 * group, 4 * group + 4))
            expected = (
                by_hand * before[row, group].float()
            )  # by the change, of which the scale is before x (1 + change)
            room = {"atol": 1e-6, "rtol": 1e-5} if dtype is torch.float32 else {"atol": 0.05, "rtol": 0.02}
            torch.testing.assert_close(layer.change.grad[row, group], expected, **room)


def test_it_is_trained_with_integers_and_zero_points_as_they_were(made):
    training = ("recovery.training.learning_rate=0.01", "recovery.training.steps=20")
    found = made(*RTN, "compressor.quantization.symmetric=false", *training)
    about, history = found.repair.read("repair.json"), found.repair.read("history.json")["scales"]
    assert about == {"kind": "scales", "added": SCALES, "trainable": SCALES, "bytes": 4 * SCALES}
    assert history["best_loss"] < history["heldout"][0]["loss"] - 0.01
    empty = replace(found.empty, grid=found.claims)
    assert found.config.recovery.numbers(empty) == SCALES and found.config.recovery.numbers(found.empty) == 0
    assert repair_bytes(found.config.recovery, found.config.compressor, found.empty) == 4 * SCALES
    plain, repaired = (opened(found, repair).model for repair in (False, True))
    grids = load_file(found.compressed.path / "grids.safetensors")
    scales = rescaling.load(found.repair.path / "scales")
    assert set(pack.packed_layers(grids)) == set(scales) and len(scales) == 14
    for name, weight in repaired.named_parameters():
        layer, before = name.removesuffix(".weight"), plain.get_parameter(name)
        if layer not in scales:
            assert torch.equal(weight, before), name
            continue
        each = scales[layer]
        assert torch.equal(each.before, grids[f"{layer}.scale"]) and not torch.equal(each.before, each.after)
        assert torch.equal(each.zero_point, grids[f"{layer}.zero_point"]) and each.zero_point.any()
        was = pack.pack(before, each.before, each.zero_point, 3, False)
        is_now = pack.pack(weight, each.after, each.zero_point, 3, False)
        assert torch.equal(was["weight_packed"], is_now["weight_packed"]), name
        assert torch.equal(was["weight_zero_point"], is_now["weight_zero_point"]), name
        assert torch.equal(weight == 0, before == 0), name
    variants = opening.open_variants(found.config.model, found.compressed, found.repair, found.config.recovery, True)
    assert list(variants) == ["compressed", "scales"]
    with torch.no_grad():
        for name in ("compressed", "scales", "compressed"):
            expected = (repaired if name == "scales" else plain)(TOKENS).logits
            assert torch.equal(variants.ready(name).model(TOKENS).logits, expected)


def test_a_joint_model_keeps_its_zeros_and_half_precision_its_rounding(made):
    found = made(*JOINT, "model.dtype=bfloat16", "recovery.training.learning_rate=0.01")
    scales = rescaling.load(found.repair.path / "scales")
    assert {dtype for each in scales.values() for dtype in (each.before.dtype, each.after.dtype)} == {torch.bfloat16}
    plain, repaired = (opened(found, repair).model for repair in (False, True))
    for name in scales:
        before, weight = (model.get_parameter(f"{name}.weight") for model in (plain, repaired))
        assert (weight == 0).float().mean() >= 0.5 and torch.equal(weight == 0, before == 0)
        assert len(weight[0, : weight.shape[1] // scales[name].before.shape[1]].unique()) <= 16
    history = found.repair.read("history.json")["scales"]
    assert history["best_step"] > 0 and found.repair.read("repair.json")["bytes"] == 2 * sum(
        each.after.numel() for each in scales.values()
    )
    config = replace(found.config.model, dtype="float32")  # the same weights, in more digits
    wide = opening.open_repaired(config, found.compressed, found.repair, found.config.recovery).model
    torch.testing.assert_close(wide(TOKENS).logits, repaired.float()(TOKENS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
def test_checkpointing_gives_the_same_gradients_and_torch_s_own(family, open_tiny, compose):
    found = {}
    for checkpointing in ("null", "true"):
        loaded = open_tiny(family)
        grids = rounded(loaded.model)
        layers = quantised(loaded, grids)
        options = compose("recovery=scales", f"recovery.training.checkpointing={checkpointing}").recovery.training
        loss = text_loss(loaded, options, None)
        with torch.no_grad():
            for layer in layers.values():
                layer.change.add_(0.25)
        with scaled(layers.values()):
            lowered = loss.of(TOKENS)
        lowered.backward()
        found[checkpointing] = {name: layer.change.grad for name, layer in layers.items()}
    plain = open_tiny(family)
    rounded(plain.model)
    weights = {name: plain.model.get_parameter(f"{name}.weight") for name in layers}
    with torch.no_grad():
        for weight in weights.values():
            weight.mul_(1.25)  # as 0.25 was added to each relative change
    for weight in weights.values():
        weight.requires_grad_(True)
    logits = plain.model(TOKENS).logits[:, :-1].flatten(0, 1)
    nn.functional.cross_entropy(logits, TOKENS[:, 1:].flatten()).backward()
    for name, weight in weights.items():
        assert torch.equal(found["null"][name], found["true"][name]), name
        expected = (weight.grad * weight.detach() / 1.25).unflatten(1, (2, -1)).sum(-1)
        torch.testing.assert_close(found["true"][name], expected, atol=1e-5, rtol=1e-3)
        assert expected.abs().max() > 0


def rounded(model, groups=2):
    """Rounds every linear layer but the head to 3 bits, in place; its grids."""
    grids = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not model.get_output_embeddings():
            with torch.no_grad():
                weight = module.weight.unflatten(1, (groups, -1))
                scale = weight.abs().amax(-1) / 3
                module.weight.copy_(((weight / scale[..., None]).round().clamp(-4, 3) * scale[..., None]).flatten(1))
            grids |= {f"{name}.scale": scale, f"{name}.zero_point": torch.zeros_like(scale, dtype=torch.int8)}
    return grids


class Killed(Exception):
    pass


def test_killed_and_resumed_equals_undisturbed(made):
    expected = made(store="undisturbed")
    seen = []

    def report(row):
        seen.append(row)
        if len(seen) == 7:
            raise Killed

    with pytest.raises(Killed):
        made(store="killed", report=report)
    found = made(store="killed", report=lambda row: None)
    same = ("safetensors", "history.json", "repair.json")
    one, other = (
        {n: h for n, h in each.repair.manifest["files"].items() if n.endswith(same)} for each in (found, expected)
    )
    assert one == other and len(one) == 4


def test_what_belongs_to_another_compressed_model_is_refused(made, open_tiny):
    found = made(store="one")
    other = made("compressor=rtn4", "compressor.quantization.group_size=32", store="one")
    with pytest.raises(
        UserError, match="off its grid that the scales are for: they belong to another compressed model"
    ):
        opening.open_repaired(found.config.model, other.compressed, found.repair, found.config.recovery)
    with pytest.raises(UserError, match="the model has no layer model.layers.0.mlp.down_proj|belong to another"):
        rescaling.attach(open_tiny("opt"), found.repair.path / "scales")
    with pytest.raises(ValueError, match=r"a weight of \(4, 6\) off a grid of \(4, 4\)"):
        rescaling.steps_of(torch.zeros(4, 6), torch.ones(4, 4), torch.zeros(4, 4, dtype=torch.int8))


@pytest.mark.parametrize("symmetric", [True, False])
def test_steps_of_eight_bits(symmetric):
    """Codes less zero points reach from -255 to 255; in bfloat16 what is found makes the very weight."""
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(-128, 128, (32, 64), generator=draw)
    zero = (
        torch.zeros(32, 2, dtype=torch.int8)
        if symmetric
        else torch.tensor([[-128, 127]], dtype=torch.int8).repeat(32, 1)
    )
    steps = codes.unflatten(1, (2, -1)) - zero[..., None].long()
    for dtype in (torch.float32, torch.bfloat16):
        scale = (torch.rand(32, 2, generator=draw) + 0.1).to(dtype)
        weight = (steps.to(dtype) * scale[..., None]).flatten(1)
        found = rescaling.steps_of(weight, scale, zero)
        assert found.dtype == (torch.int8 if symmetric else torch.int16)
        assert torch.equal((found.unflatten(1, (2, -1)).to(dtype) * scale[..., None]).flatten(1), weight)
        assert dtype is torch.bfloat16 or torch.equal(found.long(), steps.flatten(1))
        assert (found.unflatten(1, (2, -1)) + zero[..., None].long()).abs().max() <= 128  # codes of 8 bits


@pytest.mark.parametrize(
    ("compressor", "label"),
    [(("compressor=none",), "none"), (("compressor=sparsegpt50",), "sparsegpt50"), (("external",), "external-")],
)
def test_weights_on_no_grid_are_refused_before_anything_is_computed(
    compressor, label, compose, bridges, tmp_path, model_folders
):
    if compressor == ("external",):
        compressor = ("compressor=external", f"compressor.path={model_folders('llama')}")
    words = ("model=tiny_llama", "task=arc_easy", "budget=smoke", "tracker=none", "evaluation.perplexity=[]", *bridges)
    config = compose(*words, *compressor, "recovery=scales", f"output={tmp_path}")
    with pytest.raises(
        UserError, match=f"^recovery=scales changes the grid .* compressor={label}.* leaves none that is known"
    ) as caught:
        plan.preflight.preflight(config)
    assert "\n" not in str(caught.value) and not list(tmp_path.rglob("*.safetensors"))


def test_experts_are_refused(compose):
    shape = {**FAMILIES["llama"], "model_type": "mixtral", "num_local_experts": 2}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.pop("model_type"), **shape))
    with pytest.raises(UserError, match="recovery=scales: MixtralForCausalLM is a mixture of experts"):
        compose("recovery=scales").recovery.check_model(LoadedModel(model, None, ()))


@pytest.mark.parametrize(("family", "size", "count"), [
    ("llama", -1, 2 * (64 + 32 + 32 + 64 + 128 + 128 + 64)),
    ("opt", 32, 2 * (4 * 64 * 2 + 128 * 2 + 64 * 4)),
])  # fmt: skip
def test_counts_by_hand(family, size, count, compose):
    shape = dict(FAMILIES[family])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.pop("model_type"), **shape))
    empty = LoadedModel(model, None, (), Claims(bits=4, group_size=size))
    assert compose("recovery=scales").recovery.numbers(empty) == count


def test_the_plan_knows_what_its_training_holds(compose, monkeypatch):
    """A byte for each weight beside the model."""
    from idp.plan.estimate import Size, training_bytes

    recovery = compose("recovery=scales").recovery
    size = Size(1_000_000, 2, True, AutoConfig.for_model(**FAMILIES["llama"]))
    held = training_bytes(recovery, size)
    monkeypatch.setattr(type(recovery), "bytes_beside_weights", 0.0)
    assert held - training_bytes(recovery, size) == 1_000_000


def test_one_that_does_not_say_that_it_reads_the_grid_is_not_given_it(made, monkeypatch):
    found = made(store="one")
    kind = type(found.config.recovery)
    monkeypatch.setattr(kind, "needs", frozenset({"text", "weights"}))
    with pytest.raises(ValueError, match="says so: GRID among its `needs`"):
        made(*RTN, "recovery.training.learning_rate=0.002", store="one")


@pytest.mark.parametrize("compressor", ["gptq3", "sparsegpt50_gptq4"])
def test_an_export_stays_packed_with_the_new_scales(compressor, run_here, tmp_path):
    """What transformers loads is the repaired model, to the last bit of its weights."""
    from idp.export.checkpoint import export
    from idp.export.options import ExportOptions

    words = ("model=tiny_llama", "task=arc_easy", "budget=smoke", "tracker=none", "evaluation.perplexity=[corpus]")
    words += ("baselines=false", "recovery=scales", *SHORT, "recovery.training.learning_rate=0.02")
    record = run_here(*words, f"compressor={compressor}")
    folder = tmp_path / "outputs" / "runs" / record["idp"]["name"]
    about = record["idp"]
    assert about["parameters"]["added"] == about["parameters"]["trainable"] == about["repair_bytes"] // 4 > 0
    assert about["repair"] == {"method": "scales", "prompts": [], "adapter": True}
    out = tmp_path / "out"
    assert export(ExportOptions(str(folder), str(out))).difference < 1e-5
    repaired = idp.load(folder)
    model = repaired._engine.repaired.model
    stored, bits = load_file(out / "model.safetensors"), int(compressor[-1])
    product = tmp_path / "outputs" / "store" / "recover" / about["stages"]["recover"]["key"]
    for name, each in rescaling.load(product / "scales").items():
        assert stored[f"{name}.weight_packed"].numel() * 32 == model.get_parameter(f"{name}.weight").numel() * bits
        assert torch.equal(stored[f"{name}.weight_scale"], each.after) and not torch.equal(each.before, each.after)
    theirs = AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS).logits, model(TOKENS).logits, atol=1e-5, rtol=0)
    found = dict(theirs.named_parameters())  # decompressed by the first pass
    for name, weight in model.named_parameters():
        assert torch.equal(weight, found[name]), name
    assert "the checkpoint is the repaired model" in (out / "README.md").read_text()
    again = idp.load(out)
    text = ["the old bridge over the river"]
    assert again.variant == "repaired" and again.perplexity(text) == pytest.approx(repaired.perplexity(text), rel=1e-5)
    with pytest.raises(UserError, match="this export holds no compressed model, only repaired"):
        idp.load(out, variant="compressed")
