"""The closed form: held to plain references, on models of each layout, as an adapter that PEFT loads."""

import json

import pytest
import torch

from idp import models
from idp.compress import stage as compressing
from idp.errors import UserError
from idp.models import LoadedModel
from idp.recover import lora, making, opening, stage
from idp.recover.closed_form import best_update, scaled, update_of
from idp.recover.context import CalibrationText, RepairContext
from idp.recover.correction import Products
from idp.recover.targets import is_transposed, matrix, target_layers
from idp.store import Store

TOKENS = torch.randint(1, 200, (6, 16), generator=torch.Generator().manual_seed(0))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The mathematics


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_it_is_eora_s_and_qera_s(shape, rank):
    """SVD of E S^(1/2), cut off, times the inverse of the root; what is left is what Eckart and Young leave."""
    error, inputs = draw(*shape), draw(40, shape[1], seed=1) * torch.logspace(-2, 1, shape[1], dtype=torch.float64)
    moment = inputs.T @ inputs
    values, vectors = torch.linalg.eigh(moment)
    root, inverse = (vectors @ torch.diag(values**power) @ vectors.T for power in (0.5, -0.5))
    left, sizes, right = torch.linalg.svd(error @ root, full_matrices=False)
    expected = (left[:, :rank] * sizes[:rank]) @ right[:rank] @ inverse
    a, b = best_update(error, moment, rank)
    assert a.shape == (rank, shape[1]) and b.shape == (shape[0], rank)
    torch.testing.assert_close(b @ a, expected, rtol=1e-6, atol=1e-8)
    left_over = (inputs @ (error - b @ a).T).square().sum()
    torch.testing.assert_close(left_over, sizes[rank:].square().sum(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0))


def test_damping_is_that_of_the_moment():
    error, inputs = draw(4, 6), draw(30, 6, seed=1)
    moment = inputs.T @ inputs
    damped = moment + 0.3 * moment.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    one, other = best_update(error, moment, 2, damping=0.3), best_update(error, damped, 2)
    torch.testing.assert_close(one[1] @ one[0], other[1] @ other[0])
    plain = best_update(error, moment, 2)
    assert (one[1] @ one[0] - plain[1] @ plain[0]).abs().max() > 1e-3
    # With more and more of it every input counts alike: the plain singular value decomposition.
    a, b = best_update(error, moment, 2, damping=1e6)
    left, sizes, right = torch.linalg.svd(error)
    torch.testing.assert_close(b @ a, (left[:, :2] * sizes[:2]) @ right[:2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_what_outputs_lack_says_the_same_as_the_inputs(damping):
    """Of a wide layer nothing but X E' is summed up."""
    error, inputs = draw(4, 9), draw(30, 9, seed=1)
    lacking = inputs @ error.T
    one = update_of(error, lacking.T @ lacking, 2, float(inputs.square().sum()), damping)
    other = best_update(error, inputs.T @ inputs, 2, damping)
    torch.testing.assert_close(one[1] @ one[0], other[1] @ other[0])
    torch.testing.assert_close(update_of(error, torch.zeros(4, 4), 2), best_update(error, None, 2))  # no inputs


@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
def test_inputs_that_are_always_zero_are_no_special_case(shape):
    inputs = draw(30, shape[1], seed=1)
    inputs[:, [0, 2]] = 0
    error = draw(*shape)
    a, b = best_update(error, inputs.T @ inputs, 2)
    assert bool(a.isfinite().all() and b.isfinite().all())
    best = torch.linalg.svdvals(inputs @ error.T)[2:].square().sum()
    torch.testing.assert_close((inputs @ (error - b @ a).T).square().sum(), best)


@pytest.mark.parametrize("moment", [None, torch.zeros(6, 6)])
def test_without_inputs_each_counts_alike(moment):
    """An expert to which no token was sent."""
    error = draw(4, 6)
    a, b = best_update(error, moment, 3)
    left, sizes, right = torch.linalg.svd(error, full_matrices=False)
    torch.testing.assert_close(b @ a, (left[:, :3] * sizes[:3]) @ right[:3])


def test_no_error_has_no_update():
    a, b = best_update(torch.zeros(4, 6), torch.eye(6), 2)
    assert not a.any() and not b.any()


def test_a_scale_is_taken_out_of_both_factors():
    a, b = scaled(draw(2, 5), draw(4, 2), 4.0)
    torch.testing.assert_close(4 * b @ a, draw(4, 2) @ draw(2, 5))


def test_inputs_that_layers_share_are_multiplied_once():
    """Never those of another tensor, be it in the same memory, nor those that have changed since."""
    products, inputs = Products(), torch.randn(5, 3)
    one = products.of(inputs)
    assert products.of(inputs.view(5, 3)) is one
    inputs.mul_(2)
    torch.testing.assert_close(products.of(inputs), inputs.T @ inputs)
    torch.testing.assert_close(products.of(inputs[:3]), inputs[:3].T @ inputs[:3])


# On models


def damage(model, layers, seed=3):
    with torch.no_grad():
        for name in layers:
            weight = model.get_submodule(name).weight
            weight.add_(0.2 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))


def solved(open_tiny, compose, tmp_path, family, *overrides):
    """A damaged model, the dense one, and what the closed form makes of them."""
    dense, loaded = open_tiny(family), open_tiny(family)
    options = compose("recovery=lowrank", "recovery.rank=4", *overrides).recovery
    options.check_model(loaded)
    damage(loaded.model, target_layers(loaded.model, options.targets))
    context = RepairContext(loaded, 0, tmp_path / "checkpoint", tmp_path)
    context.calibration, context.open_dense = TOKENS, lambda: dense
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    made = options.make(context)
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())
    return dense, loaded, options, made


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gemma2", "qwen2"])
def test_each_layer_is_repaired_as_well_as_its_rank_can(family, open_tiny, compose, tmp_path):
    """And the model as a whole comes nearer to the dense one, through PEFT alone, merged and not."""
    from peft import PeftModel

    dense, loaded, options, made = solved(open_tiny, compose, tmp_path, family)
    wanted = target_layers(loaded.model, ["all-linear"])
    assert made.low_rank.keys() == wanted.keys() and not any("lm_head" in name for name in wanted)
    assert len(wanted) == 2 * {"llama": 7, "opt": 6, "gpt2": 4, "gemma2": 7, "qwen2": 7}[family]
    inputs = {}
    handles = [
        layer.register_forward_hook(
            lambda _, given, __, name=name: inputs.update({name: given[0].flatten(0, -2).double()})
        )
        for name, layer in wanted.items()
    ]
    with torch.no_grad():
        damaged = loaded.model(TOKENS).logits
        right = dense.model(TOKENS).logits
    for handle in handles:
        handle.remove()
    for name, layer in wanted.items():
        lost = (matrix(dense.model.get_submodule(name)) - matrix(layer)).double()
        a, b = (each.double() for each in made.low_rank[name])
        outputs = inputs[name] @ lost.T
        best = torch.linalg.svdvals(outputs)[4:].square().sum()
        torch.testing.assert_close((outputs - inputs[name] @ (b @ a).T).square().sum(), best, rtol=1e-3, atol=1e-6)
    lora.save(loaded, made.low_rank, tmp_path / "adapter")
    expected = {}
    for name, (a, b) in made.low_rank.items():
        layer = loaded.model.get_submodule(name)
        expected[name] = layer.weight + ((b @ a).T if is_transposed(layer) else b @ a)
    theirs = PeftModel.from_pretrained(loaded.model, tmp_path / "adapter").eval()
    with torch.no_grad():
        adapted = theirs(TOKENS).logits
        merged = theirs.merge_and_unload()
        for name, weight in expected.items():
            torch.testing.assert_close(merged.get_submodule(name).weight, weight, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(merged(TOKENS).logits, adapted, atol=1e-3, rtol=1e-3)
    assert (adapted - right).square().mean() < 0.8 * (damaged - right).square().mean()
    assert options.numbers(dense) == made.added == sum(4 * sum(each.weight.shape) for each in wanted.values())


def test_targets_by_name(open_tiny, compose, tmp_path):
    _, _, _, made = solved(open_tiny, compose, tmp_path, "llama", "recovery.targets=[down_proj]")
    assert list(made.low_rank) == [f"model.layers.{number}.mlp.down_proj" for number in range(2)]


def test_a_router_is_left_alone(open_tiny):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model("mixtral", **sizes, num_key_value_heads=2, num_local_experts=3, vocab_size=64)
        )
    assert {name.rsplit(".", 1)[-1] for name in target_layers(model, ["all-linear"])} == {
        "q_proj", "k_proj", "v_proj", "o_proj",
    }  # fmt: skip


def test_bad_input_is_one_line(open_tiny, compose, tmp_path):
    loaded = open_tiny("llama")
    with pytest.raises(UserError, match=r"recovery.rank=33: model.layers.0.self_attn.k_proj is 32 x 64; use 32 or"):
        compose("recovery=lowrank", "recovery.rank=33").recovery.check_model(loaded)
    with pytest.raises(UserError, match="no layer is called c_attn; there are down_proj, .* and all-linear"):
        compose("recovery=lowrank", "recovery.targets=[c_attn]").recovery.check_model(loaded)
    with pytest.raises(UserError, match=r"recovery.targets is empty: .* or recovery.targets=\[all-linear\]"):
        compose("recovery=lowrank", "recovery.targets=[]")
    options = compose("recovery=lowrank", "recovery.rank=4").recovery
    for other, message in {
        "opt": "it has no model.layers.0.self_attn.q_proj",
        "qwen3": r"model.layers.0.self_attn.\w_proj is \[\d+, \d+\] there and",
        "llama": "the cosine of their weights is -?0.0",
    }.items():
        dense = open_tiny(other)
        if other == "llama":
            with torch.no_grad():
                for number, parameter in enumerate(dense.model.parameters()):
                    parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
        if other == "qwen3":
            dense.model.model.layers[0].self_attn.q_proj = torch.nn.Linear(64, 32)
        context = RepairContext(loaded, 0, tmp_path, tmp_path, calibration=TOKENS, open_dense=lambda dense=dense: dense)
        with pytest.raises(UserError, match=f"the dense model does not belong to the compressed one: {message}"):
            options.make(context)


# Through the stage


@pytest.fixture
def repaired(compose, text, tmp_path):
    """`repaired(*overrides)`: a repair of a compressed tiny model through the stage, and all that it was made from."""

    def make(*overrides):
        few = ["compressor.calibration.samples=4", "compressor.calibration.length=48"]
        config = compose("model=tiny_llama", "compressor=rtn3", "recovery=lowrank", "recovery.rank=4", *few, *overrides)
        root = Store(tmp_path / "store")
        dense = models.load(config.model, models.find_model(config.model), root)
        empty = models.open_empty(models.model_folder(dense), config.model)
        size = compressing.check(config.compressor, empty, text)
        compressed = compressing.compress(config.compressor, size, config.model, dense, text, root)
        calibration = CalibrationText(config.compressor.calibration, text)
        stage.check(config.recovery, empty, text, calibration)
        made = stage.recover(
            config.recovery, config.model, compressed, text, config.seed, root, dense=dense, calibration=calibration
        )
        return config, dense, compressed, made

    return make


@pytest.mark.parametrize("compressor", ["rtn3", "magnitude50", "sparsegpt50_gptq4"])
def test_quantised_pruned_and_joint_models(compressor, repaired):
    config, dense, compressed, repair = repaired(f"compressor={compressor}")
    plain, coarse, better = (
        each.model
        for each in (
            models.open_model(models.model_folder(dense), config.model),
            models.open_model(models.model_folder(compressed), config.model),
            opening.open_repaired(config.model, compressed, repair, config.recovery),
        )
    )
    with torch.no_grad():
        right, wrong, found = (model(TOKENS).logits for model in (plain, coarse, better))
    assert (found - right).square().mean() < 0.9 * (wrong - right).square().mean()
    numbers = 2 * 4 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 128))  # layers, rank, q, k and v, o, the MLP
    assert repair.read("repair.json") == {"kind": "lowrank", "added": numbers, "trainable": 0, "bytes": 4 * numbers}


def test_the_key_has_the_text_that_is_read(repaired):
    """However it is said; another draw is another repair of the same compressed model, and the run's seed is none."""
    _, _, compressed, one = repaired()
    for same in (["recovery.draw=0"], ["recovery.samples=4"], ["recovery.sample_length=48"], ["seed=3"]):
        assert repaired(*same)[3].key == one.key, same
    found = {one.key}
    for other in (["recovery.draw=1"], ["recovery.samples=3"], ["recovery.sample_length=32"], ["recovery.damping=0.1"]):
        _, _, same, repair = repaired(*other)
        assert same.key == compressed.key
        found.add(repair.key)
    assert len(found) == 5
    manifest = json.loads((one.path / "manifest.json").read_text())["config"]
    assert manifest["recovery"] == {"kind": "lowrank", "rank": 4, "targets": ["all-linear"]}
    assert manifest["calibration"] == {"corpus": "grammar", "samples": 4, "length": 48, "seed": 0}


def test_text_that_does_not_fit_is_refused(repaired):
    with pytest.raises(UserError, match=r"^recovery.sample_length=4000: the model's window is 2048; use 2048 or less"):
        repaired("recovery.sample_length=4000")
    with pytest.raises(UserError, match=r"calibration"):
        repaired("recovery.samples=100000")


def test_a_check_of_weights_is_asked_before_anything_is_opened(repaired, monkeypatch):
    from idp.recover.lowrank import LowRank

    def refuse(self, sparsity, bits):
        raise UserError(f"{sparsity:.1f} {bits}")

    monkeypatch.setattr(LowRank, "check_weights", refuse)
    monkeypatch.setattr(making, "_opened", None)
    with pytest.raises(UserError, match=r"0\.\d 3"):
        repaired()


def test_a_model_without_weights_is_no_obstacle(compose, open_tiny):
    model = open_tiny("opt").model.to("meta")
    options = compose("recovery=lowrank", "recovery.rank=2").recovery
    assert options.numbers(LoadedModel(model, None, ())) == 2 * 2 * (4 * 128 + 2 * 192)
