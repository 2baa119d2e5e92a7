"""LoRA on all linear layers, from the closed form, with DoRA: the start is right, trained, saved, merged and put on."""

import pytest
import torch

from idp.config import CALIBRATION, DENSE
from idp.errors import UserError
from idp.recover import lora, lora_start
from idp.recover.context import RepairContext
from idp.recover.correction import corrections
from idp.recover.objective import text_loss
from idp.recover.targets import is_transposed, target_layers

from .test_lowrank import TOKENS, damage

SHORT = {"steps": 3, "batch_size": 2, "sequence_length": 16, "warmup_steps": 1, "evaluate_every": 3}
SHORT |= {"heldout_sequences": 2, "checkpoint_every": 3, "learning_rate": 0.003}
ALL = ("recovery=lora_all", "recovery.rank=4", *(f"recovery.training.{name}={value}" for name, value in SHORT.items()))


@pytest.fixture
def work(open_tiny, tmp_path):
    """`work(family)`: a damaged model with its dense one and texts, as a recovery is given them."""

    def make(family="llama"):
        dense, loaded = open_tiny(family), open_tiny(family)
        damage(loaded.model, target_layers(loaded.model, ["all-linear"]))
        context = RepairContext(loaded, 0, tmp_path / "checkpoint", tmp_path, text=(TOKENS, TOKENS[:2]))
        context.calibration, context.open_dense = TOKENS, lambda: dense
        return context

    return make


def start_of(context, options):
    return corrections(context, options.targets, options.rank, options.damping)


def updated(context, start):
    """The model with W + B A in its layers: what it is to begin as."""
    with torch.no_grad():
        for name, (a, b) in start.items():
            layer = context.loaded.model.get_submodule(name)
            layer.weight.add_((b @ a).T if is_transposed(layer) else b @ a)
        return context.loaded.model(TOKENS).logits


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("alpha", [4.0, 13.0])
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gemma2"])
def test_it_begins_as_lowrank(family, alpha, dora, work, compose):
    context = work(family)
    options = compose(*ALL, f"recovery.alpha={alpha}", f"recovery.dora={dora}").recovery
    start = start_of(context, options)
    adapted = lora.adapt(context.loaded, options)
    lora_start.begin(adapted, start)
    with torch.no_grad():
        found = adapted.eval()(TOKENS).logits
    adapted.unload()
    torch.testing.assert_close(found, updated(context, start), atol=2e-4, rtol=1e-3)


def test_a_direction_without_an_update_can_still_be_trained(work, compose):
    """With zeros in both factors it would have no gradient for ever."""
    context = work()
    options = compose(*ALL).recovery
    start = {name: (a * 0, b * 0) for name, (a, b) in start_of(context, options).items()}
    adapted = lora.adapt(context.loaded, options)
    lora_start.begin(adapted, start)
    text_loss(context.loaded, options.training, None, adapted)(TOKENS).backward()
    moved = [name for name, each in adapted.named_parameters() if each.requires_grad and each.grad.abs().max() > 0]
    assert len(moved) == len(start) and all("lora_B" in name for name in moved)
    adapted.unload()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dora", [False, True])
def test_it_is_trained_and_put_back(dora, family, work, compose, open_tiny, tmp_path):
    """Counts by hand; the best is never worse than the start; attached, merged and by PEFT alone it is one model."""
    from peft import PeftModel

    from idp.models import LoadedModel

    context = work(family)
    options = compose(*ALL, f"recovery.dora={dora}").recovery
    made = options.make(context)
    layers = target_layers(context.loaded.model, ["all-linear"])
    assert not any("lora" in name for name, _ in context.loaded.model.named_modules())
    outputs = sum(layer.weight.shape[1 if is_transposed(layer) else 0] for layer in layers.values())
    expected = 4 * sum(sum(layer.weight.shape) for layer in layers.values()) + (outputs if dora else 0)
    assert made.added == made.trainable == options.numbers(context.loaded) == expected
    history = made.histories["lora"]
    assert history.best_loss <= history.heldout[0]["loss"] and len(history.train) == 3

    def damaged():
        loaded = open_tiny(family)
        damage(loaded.model, target_layers(loaded.model, ["all-linear"]))
        return LoadedModel(loaded.model, loaded.tokenizer)

    with torch.no_grad():
        theirs = PeftModel.from_pretrained(damaged().model, tmp_path / "adapter").eval()(TOKENS).logits
        plain = damaged().model(TOKENS).logits
        for merge in (False, True):
            ours = lora.attach(damaged(), tmp_path / "adapter", merge).model(TOKENS).logits
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)
    assert (plain - theirs).abs().max() > 1e-3


@pytest.mark.parametrize("dora", [False, True])
def test_layers_computed_anew_have_the_same_gradient(dora, work, compose):
    """Gradient checkpointing with adapters on every layer, their dropout drawn once."""
    found = []
    context = work()
    start = start_of(context, compose(*ALL).recovery)
    for checkpointing in (False, True):
        options = compose(
            *ALL, f"recovery.dora={dora}", "recovery.dropout=0.2", f"recovery.training.checkpointing={checkpointing}"
        ).recovery
        torch.manual_seed(0)
        adapted = lora.adapt(context.loaded, options)
        lora_start.begin(adapted, start)
        torch.manual_seed(1)
        loss = text_loss(context.loaded, options.training, None, adapted)(TOKENS)
        loss.backward()
        gradients = {name: each.grad for name, each in adapted.named_parameters() if each.requires_grad}
        assert all(gradient is not None and bool(gradient.any()) for gradient in gradients.values())
        found.append((loss.item(), gradients))
        adapted.unload().eval()
    assert found[0][0] == found[1][0]
    assert all(torch.equal(gradient, found[1][1][name]) for name, gradient in found[0][1].items())


def test_dora_of_a_row_of_zeros_is_refused(work, compose):
    context = work()
    with torch.no_grad():
        context.loaded.model.model.layers[1].mlp.up_proj.weight[3] = 0
    options = compose(*ALL, "recovery.dora=true", "recovery.init=zero").recovery
    with pytest.raises(UserError, match=r"1 of 128 rows of model.layers.1.mlp.up_proj are zero and have no direction"):
        options.make(context)
    assert not any("lora" in name for name, _ in context.loaded.model.named_modules())


def test_the_dense_model_that_teaches_is_the_one_that_is_solved_for(work, compose):
    context = work()
    options = compose(*ALL, "recovery.training.objective=distill").recovery
    context.teacher, context.open_dense = context.dense(), None
    made = options.make(context)
    assert made.histories["lora"].best_loss <= made.histories["lora"].heldout[0]["loss"]


def test_what_it_needs_and_what_its_key_has(compose):
    plain = compose("recovery=lora").recovery
    assert not {CALIBRATION, DENSE} & plain.needs
    assert plain.options().keys() == {"kind", "training", "rank", "alpha", "dropout", "targets"}
    assert compose("recovery=lora", "recovery.damping=0.1").recovery.options() == plain.options()
    solved = compose("recovery=lora_all").recovery
    assert {CALIBRATION, DENSE} <= solved.needs and solved.kind == solved.method == "lora"
    assert solved.options()["init"] == "lowrank" and "damping" not in solved.options()
    assert compose("recovery=lora_all", "recovery.damping=0.1").recovery.options()["damping"] == 0.1
    searched = compose("recovery=lora", "recovery.search.inits=[zero,lowrank]").recovery
    assert {CALIBRATION, DENSE} <= searched.needs and "init" not in searched.options()
    with pytest.raises(UserError, match=r"recovery.alpha=0: no update has an effect, so none can start"):
        compose("recovery=lora_all", "recovery.alpha=0")


def test_prompts_on_top_of_it_know_what_it_read(compose, text, small):
    """The key of lora_idp has the calibration text of the adapter beneath it."""
    from idp.recover.context import CalibrationText
    from idp.recover.identity import Basis, identities

    def keys(*overrides):
        config = compose("model=tiny_llama", "recovery=lora_idp", *overrides)
        calibration = CalibrationText(config.compressor.calibration, text)
        basis = Basis(config.model, "dense", "compressed", text, calibration, 0)
        return [identity.key for _, identity in identities(config.recovery, basis, ())]

    zero, first = keys(), keys("recovery.lora.init=lowrank")
    other = keys("recovery.lora.init=lowrank", "recovery.lora.draw=1")
    assert len({*zero, *first, *other}) == 6
    assert keys("recovery.lora.draw=1") == zero
