"""Masked LoRA: its layer held to plain autograd, every zero kept, and what attaches, is exported and is refused."""

import pytest
import torch
from safetensors.torch import load_file

import idp
from idp.errors import UserError
from idp.recover import masked_lora
from idp.recover.context import RepairContext
from idp.recover.masked_lora import MaskedLora
from idp.recover.nets.masked import MaskedLinear, masked_weight
from idp.recover.objective import text_loss
from idp.recover.targets import target_layers

from .test_lora_starts import SHORT
from .test_lowrank import TOKENS, draw

MASKED = ("recovery=masked_lora", "recovery.rank=4", "recovery.alpha=8")
MASKED += tuple(f"recovery.training.{name}={value}" for name, value in SHORT.items())


def prune(model, two_of_four=False):
    """Half of each layer's weights, the smallest ones; or of each four."""
    with torch.no_grad():
        for layer in target_layers(model, ["all-linear"]).values():
            weight = layer.weight
            groups = weight.abs().view(-1, 4) if two_of_four else weight.abs().view(1, -1)
            kept = torch.zeros_like(groups, dtype=torch.bool)
            kept.scatter_(1, groups.topk(groups.shape[1] // 2, dim=1).indices, True)
            weight.mul_(kept.view_as(weight))


@pytest.fixture
def pruned(open_tiny):
    def opened(family="llama", two_of_four=False):
        loaded = open_tiny(family)
        prune(loaded.model, two_of_four)
        return loaded

    return opened


# The layer


@pytest.mark.parametrize("bias", [False, True])
def test_its_values_and_gradients_are_those_of_plain_autograd(bias):
    layer = torch.nn.Linear(6, 5, bias=bias, dtype=torch.float64).requires_grad_(False)
    with torch.no_grad():
        layer.weight[draw(5, 6) < 0] = 0
    inputs, a, b = (draw(*shape, seed=2).requires_grad_() for shape in ((2, 3, 6), (2, 6), (5, 2)))
    masked = MaskedLinear(layer, torch.nn.Parameter(a), torch.nn.Parameter(b), 1.5)
    found = masked(inputs)
    mask = (layer.weight != 0).double()
    plain = torch.nn.functional.linear(inputs, layer.weight + mask * (1.5 * b @ a), layer.bias)
    torch.testing.assert_close(found, plain)
    upward = draw(2, 3, 5, seed=3)
    expected = torch.autograd.grad(plain, (inputs, a, b), upward)
    for one, other in zip(torch.autograd.grad(found, (inputs, masked.a, masked.b), upward), expected, strict=True):
        torch.testing.assert_close(one, other)
    assert all(gradient.abs().max() > 0.1 for gradient in expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_stay_and_all_else_moves(dtype):
    weight = torch.randn(8, 12).to(dtype)
    weight[:, ::3] = 0
    a, b = torch.randn(2, 12), torch.randn(8, 2)
    found = masked_weight(weight, a, b, 0.5)
    assert found.dtype == dtype and torch.equal(found == 0, weight == 0)
    plain = (weight.float() + 0.5 * b @ a).to(dtype)
    torch.testing.assert_close(found[weight != 0], plain[weight != 0])


def test_neither_weight_nor_its_gradient_is_kept():
    """Between the passes a layer holds its inputs and what was there before."""
    layer = torch.nn.Linear(64, 64, bias=False).requires_grad_(False)
    masked = MaskedLinear(layer, *(torch.nn.Parameter(torch.randn(*shape)) for shape in ((2, 64), (64, 2))), 1.0)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        masked(torch.randn(3, 64, requires_grad=True))
    assert sorted(tensor.numel() for tensor in saved) == [128, 128, 192, 4096]
    assert any(tensor.data_ptr() == layer.weight.data_ptr() for tensor in saved)


# The repair


@pytest.mark.parametrize("two_of_four", [False, True])
@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
def test_it_is_trained_and_merged_with_every_zero_kept(family, two_of_four, pruned, compose, tmp_path):
    loaded = pruned(family, two_of_four)
    options = compose(*MASKED).recovery
    options.check_model(loaded)
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    context = RepairContext(loaded, 0, tmp_path / "checkpoint", tmp_path, text=(TOKENS, TOKENS[:2]))
    made = options.make(context)
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())
    layers = target_layers(loaded.model, ["all-linear"])
    numbers = 4 * sum(sum(layer.weight.shape) for layer in layers.values())
    assert made.added == made.trainable == options.numbers(loaded) == numbers and made.low_rank == {}
    history = made.histories["masked_lora"]
    assert history.best_loss < history.heldout[0]["loss"]

    attached = MaskedLora.attach(pruned(family, two_of_four), tmp_path / "own")
    update = load_file(tmp_path / "own" / masked_lora.FILE)
    for name in layers:
        old, new = before[f"{name}.weight"], attached.model.get_submodule(name).weight
        assert torch.equal(new == 0, old == 0) and not torch.equal(new, old)
        product = update[f"{name}.B"] @ update[f"{name}.A"]
        torch.testing.assert_close(new, torch.where(old == 0, old, old + product))
        if two_of_four:
            assert int((new.view(-1, 4) != 0).sum(1).max()) == 2
    assert {type(layer) for layer in target_layers(attached.model, ["all-linear"]).values()} == {torch.nn.Linear}
    loss = text_loss(attached, options.training, None)
    with torch.no_grad():
        assert loss(TOKENS[:2]).item() == pytest.approx(history.best_loss, abs=1e-4)


def test_layers_computed_anew_have_the_same_gradient(pruned, compose):
    found = []
    for checkpointing in (False, True):
        loaded = pruned()
        options = compose(*MASKED, f"recovery.training.checkpointing={checkpointing}").recovery
        context = RepairContext(loaded, 0, None, None)
        trained = options._start(context)
        with torch.no_grad():
            for value in trained.values():
                value.add_(0.01 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
        with masked_lora._in_place(loaded, trained, 2.0):
            loss = text_loss(loaded, options.training, None)(TOKENS)
            loss.backward()
        found.append((loss.item(), {name: value.grad for name, value in trained.items()}))
    assert found[0][0] == found[1][0]
    assert all(gradient.any() and torch.equal(gradient, found[1][1][name]) for name, gradient in found[0][1].items())


def test_an_update_of_another_model_is_refused(pruned, compose, tmp_path):
    loaded = pruned()
    context = RepairContext(loaded, 0, tmp_path / "checkpoint", tmp_path, text=(TOKENS, TOKENS[:2]))
    compose(*MASKED).recovery.make(context)
    with pytest.raises(UserError, match=r"update.safetensors: .* it belongs to another model"):
        MaskedLora.attach(pruned("opt"), tmp_path / "own")
    (tmp_path / "own" / masked_lora.FILE).write_bytes(b"nothing")
    with pytest.raises(UserError, match="the masked update cannot be read"):
        MaskedLora.attach(pruned(), tmp_path / "own")


# A run

TINY = ("model=tiny_llama", "model.dtype=float32", "model.device=cpu", "budget=smoke", "task=arc_easy", "tracker=none")
TINY += ("evaluation.perplexity=[corpus]", "baselines=false")
TEXT = ["the old bridge over the river"]


@pytest.mark.parametrize("compressor", ["magnitude50", "wanda_2of4"])
def test_from_end_to_end(compressor, run_here, bridges, tmp_path):
    from idp.compress.recipe import compressed_layers
    from idp.export.checkpoint import export
    from idp.export.options import ExportOptions
    from idp.finished import find_run

    record = run_here(*TINY, *bridges, f"compressor={compressor}", "recovery=masked_lora", *MASKED[1:])
    about, folder = record["idp"], tmp_path / "outputs" / "runs" / record["idp"]["name"]
    assert about["parameters"]["added"] == about["parameters"]["trainable"] == about["repair_bytes"] / 4 == 8192
    assert about["repair"] == {"method": "masked_lora", "prompts": [], "adapter": True}
    opened = idp.load(folder)
    compressed = compressed_layers(find_run(folder).open("compressed").model)
    for name, layer in compressed_layers(opened._engine.repaired.model).items():
        assert torch.equal(layer.weight == 0, compressed[name].weight == 0)
        assert not torch.equal(layer.weight, compressed[name].weight)
    assert export(ExportOptions(record=str(folder), out=str(tmp_path / "out"))).difference < 1e-4
    assert idp.load(tmp_path / "out").perplexity(TEXT) == pytest.approx(opened.perplexity(TEXT), rel=1e-5)
    assert "torch.where(W == 0, W, W + B @ A)" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("compressor", "message"),
    [
        ("none", "0% of the compressed weights are zero, so there is no mask to keep; use a compressor that prunes"),
        ("gptq4", "the weights lie on a grid of 4 bits, which a merged update leaves"),
        ("sparsegpt50_gptq4", "the weights lie on a grid of 4 bits, which a merged update leaves"),
    ],
)
def test_a_model_that_is_not_pruned_is_refused_before_anything_is_made(compressor, message, compose, bridges, tmp_path):
    from idp.plan.preflight import preflight

    config = compose(
        *TINY, *bridges, f"compressor={compressor}", "recovery=masked_lora", f"output={tmp_path / 'outputs'}"
    )
    with pytest.raises(UserError, match=f"^recovery=masked_lora: {message}"):
        preflight(config)
    assert not list(tmp_path.glob("outputs/store/compress/*"))


def test_of_others_weights_the_zeros_are_counted(run_here, bridges, model_folders, pruned, tmp_path):
    """A checkpoint claims nothing: pruned it is repaired, dense it is refused before a model is opened for it."""
    dense = model_folders("llama")
    words = (*(word for word in TINY if word != "model=tiny_llama"), *bridges, "model=local", f"model.path={dense}")
    words += ("compressor=external", "recovery=masked_lora", *MASKED[1:])
    with pytest.raises(UserError, match="^recovery=masked_lora: 0% of the compressed weights are zero"):
        run_here(*words, f"compressor.path={dense}")
    loaded = pruned()
    loaded.model.save_pretrained(tmp_path / "theirs")
    loaded.tokenizer.save_pretrained(tmp_path / "theirs")
    about = run_here(*words, f"compressor.path={tmp_path / 'theirs'}")["idp"]
    assert about["parameters"]["added"] == 8192 and 0.49 < about["weights"]["sparsity"] < 0.51
