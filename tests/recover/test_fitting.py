"""A step in parts, and with layers computed anew, is the step at once: loss, gradient, and the whole training."""

from __future__ import annotations

import contextlib
import os

import pytest
import torch

from idp.prompting.shapes import prefix_width
from idp.recover import lora
from idp.recover.banks.specialists import SpecialistsBank
from idp.recover.context import RepairContext
from idp.recover.determinism import deterministic, give_up
from idp.recover.fitting import Loss
from idp.recover.initial import initial
from idp.recover.nets.reparameterization import Itself, PromptEncoder
from idp.recover.objective import Objective
from idp.recover.training import train
from idp.recover.tuning import loss_with, tune

from ..conftest import FAMILIES
from .test_training import adapter, blocks, options  # noqa: F401

KINDS = ["prompt", "prefix", "ptune", "distill", "lora", "specialists", "soft specialists"]


@pytest.fixture
def batch():
    return torch.randint(1, 250, (5, 24), generator=torch.Generator().manual_seed(1))


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2)) * 0.3


def made(kind, opened, dropout=0.0, **changes):
    """A loss of each kind, what it trains, and what is to be called when it is no longer needed."""
    loaded = opened()
    training = options(objective="distill" if kind == "distill" else "lm", lm_weight=0.3, temperature=2.0, **changes)
    width = loaded.model.get_input_embeddings().weight.shape[1]
    if kind == "lora":
        recovery = adapter(dropout, training)
        recovery.targets = ["c_attn"] if loaded.model.config.model_type == "gpt2" else recovery.targets
        objective = Objective(training, loaded, None)
        adapted = lora.adapt(loaded, recovery).train()
        trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        with torch.no_grad():
            for parameter in trained:
                parameter.copy_(noise(*parameter.shape))

        def loss_of(batch):
            return objective(loaded.model, batch, {"input_ids": batch, "use_cache": False})

        return Loss(loss_of, objective.saving.spare), trained, lambda: adapted.unload().eval()
    if kind.endswith("specialists"):
        prompts = [torch.nn.Parameter(noise(length, width) + length) for length in (5, 4)]
        mixture = "soft" if kind.startswith("soft") else "hard"
        bank = SpecialistsBank("specialists", mixture, balanced=True, temperature=0.1, diversity=0.2)
        return bank._loss_with(loaded, prompts, training), prompts, lambda: None
    maker = Itself(noise(5, prefix_width(loaded.model.config) if kind == "prefix" else width))
    if kind == "ptune":
        maker = PromptEncoder(noise(5, width), "mlp", 8, residual=True, seed=0)
    teacher = opened() if kind == "distill" else None
    if teacher is not None:
        with torch.no_grad():
            for parameter in teacher.model.parameters():
                parameter.add_(noise(*parameter.shape) * 0.1)
    loss = loss_with(loaded, maker, "prefix" if kind == "prefix" else "prompt", training, teacher)
    return loss, list(maker.parameters()), lambda: None


def loss_and_gradients(loss, parameters, batch, rows):
    torch.manual_seed(3)
    total = 0.0
    for summand in loss.summands(batch, rows):
        summand.backward()
        total += summand.item()
    found = [parameter.grad.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return total, found


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_give_the_loss_and_gradient_of_the_whole_batch(kind, open_tiny, batch):
    """The last of them is smaller."""
    loss, parameters, close = made(kind, lambda: open_tiny("llama"))
    whole, expected = loss_and_gradients(loss, parameters, batch, len(batch))
    for rows in (2, 1):
        total, found = loss_and_gradients(loss, parameters, batch, rows)
        assert total == pytest.approx(whole, abs=1e-6)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert any(bool(gradient.abs().max() > 1e-4) for gradient in expected)
    close()


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("kind", ["prompt", "prefix", "lora"])
def test_layers_computed_anew_give_the_same_bits(kind, family, open_tiny, batch):
    """LoRA's dropout, and the model's own in OPT and GPT-2, draw the same numbers again, and no others afterwards."""
    found = []
    for checkpointing in (False, True):
        loss, parameters, close = made(kind, lambda: open_tiny(family), dropout=0.3, checkpointing=checkpointing)
        found.append((*loss_and_gradients(loss, parameters, batch, len(batch)), torch.get_rng_state()))
        close()
    (loss, gradients, state), (expected_loss, expected, expected_state) = found
    assert loss == expected_loss and torch.equal(state, expected_state)
    assert all(torch.equal(one, other) for one, other in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("kind", ["specialists", "distill", "ptune"])
def test_other_losses_are_the_same_with_layers_computed_anew(kind, open_tiny, batch):
    plain, anew = (
        loss_and_gradients(*made(kind, lambda: open_tiny("llama"), checkpointing=checkpointing)[:2], batch, 2)
        for checkpointing in (False, True)
    )
    assert plain[0] == anew[0] and all(torch.equal(*pair) for pair in zip(plain[1], anew[1], strict=True))


def test_what_a_context_replaced_in_a_layer_is_there_in_its_second_run(open_tiny, batch):
    """The rotary frequencies of long inputs are such a thing; here it is all that the MLPs give, doubled."""
    from idp.recover.nets.checkpointing import checkpointed

    model = open_tiny("llama").model

    def gradient(block):
        embedded = model.get_input_embeddings()(batch).detach().requires_grad_()
        replaced = [layer.mlp for layer in model.model.layers]
        for module in replaced:
            module.forward = lambda x, own=module.forward: own(x) * 2.0
        with block:
            logits = model(inputs_embeds=embedded, use_cache=False).logits
        for module in replaced:
            del module.forward
        return torch.autograd.grad(logits.sum(), embedded)[0]

    assert torch.equal(gradient(checkpointed(model)), gradient(contextlib.nullcontext()))
    assert not any("forward" in layer.__dict__ for layer in model.model.layers)


def lacking(loss, times, at=2):
    """The loss, which runs out of memory `times` times from its `at`-th pass with gradients on, if it has two rows."""
    calls = []

    def of(batch):
        found = loss.of(batch)
        if torch.is_grad_enabled() and len(batch) > 1:
            calls.append(1)
            if at <= len(calls) < at + times:
                torch.rand(7)  # numbers that were drawn for nothing
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return found

    return Loss(of, loss.spare, loss.split)


def trained(open_tiny, text, folder, times=0, **changes):
    loaded = open_tiny("llama")
    maker = Itself(initial(loaded, 5, "vocabulary", "", 0))
    loss = loss_with(loaded, maker, "prompt", options(**changes), None)
    loss = lacking(loss, times) if times else loss
    arguments = {"seed": 3, "checkpoint": folder, "label": "test"}
    history = train(dict(maker.named_parameters()), loss, *text, options(**changes), **arguments)
    return maker.prompt.detach().clone(), history


def test_out_of_memory_computes_layers_anew_and_then_halves_the_micro_batch(open_tiny, blocks, tmp_path, caplog):  # noqa: F811
    expected, plain = trained(open_tiny, blocks, tmp_path / "plain")
    found, history = trained(open_tiny, blocks, tmp_path / "once", times=1)
    assert history.changes == [{"step": 2, "changed": "checkpointing"}]
    assert torch.equal(found, expected) and history.train == plain.train
    assert "training goes on with checkpointing" in caplog.text
    found, history = trained(open_tiny, blocks, tmp_path / "twice", times=2)
    assert [row["changed"] for row in history.changes] == ["checkpointing", "micro_batch_size=1"]
    assert history.train[0] == plain.train[0]
    for one, other in zip(history.train, plain.train, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_step_that_ran_out_is_as_if_its_micro_batch_had_been_small_from_the_start(open_tiny, blocks, tmp_path):  # noqa: F811
    """LoRA's dropout draws from the step's seed again."""

    def run(folder, times, micro):
        loaded = open_tiny("llama")
        recovery = adapter(0.3, options(steps=1, micro_batch_size=micro, checkpointing=True))
        objective = Objective(recovery.training, loaded, None)
        torch.manual_seed(0)
        adapted = lora.adapt(loaded, recovery)
        parameters = {name: value for name, value in adapted.named_parameters() if value.requires_grad}

        def loss_of(batch):
            adapted.train(torch.is_grad_enabled())
            return objective(loaded.model, batch, {"input_ids": batch, "use_cache": False})

        loss = Loss(loss_of, objective.saving.spare)
        loss = lacking(loss, times, at=1) if times else loss
        history = train(parameters, loss, *blocks, recovery.training, seed=3, checkpoint=folder, label="test")
        return history.train, history.changes

    (expected, none), (found, changes) = run(tmp_path / "a", 0, 1), run(tmp_path / "b", 1, None)
    assert found == expected and not none
    assert changes == [{"step": 1, "changed": "micro_batch_size=1", "micro_batch_size": 1}]


def test_memory_that_no_change_provides_is_an_error(open_tiny, blocks, tmp_path):  # noqa: F811
    def of(batch):
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.ones(())

    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(torch.OutOfMemoryError):
        train({"w": weight}, Loss(of), *blocks, options(), seed=0, checkpoint=tmp_path, label="test")


@pytest.mark.parametrize("kill_at", [3, 6])
def test_a_killed_training_goes_on_as_it_had_come_to(kill_at, open_tiny, blocks, tmp_path):  # noqa: F811
    expected, whole = trained(open_tiny, blocks, tmp_path / "undisturbed", times=2)

    class Killed(Exception):
        pass

    def kill(row):
        if row["step"] == kill_at and "loss" in row:
            raise Killed

    loaded = open_tiny("llama")
    maker = Itself(initial(loaded, 5, "vocabulary", "", 0))
    loss = lacking(loss_with(loaded, maker, "prompt", options(), None), 2)
    arguments = {"seed": 3, "checkpoint": tmp_path / "killed", "label": "test"}
    with pytest.raises(Killed):
        train(dict(maker.named_parameters()), loss, *blocks, options(), report=kill, **arguments)
    again = 2 if kill_at < options().checkpoint_every else 0  # before the first checkpoint all happens anew
    found, history = trained(open_tiny, blocks, tmp_path / "killed", times=again)
    assert vars(history) == vars(whole) and torch.equal(found, expected)


def test_on_a_gpu_torch_is_asked_for_deterministic_operations():
    from types import SimpleNamespace

    import idp  # noqa: F401 - it sets cuBLAS' workspaces before anything uses them

    def asked():
        warned = torch.is_deterministic_algorithms_warn_only_enabled()
        return torch.are_deterministic_algorithms_enabled(), warned, torch.utils.deterministic.fill_uninitialized_memory

    before = asked()
    with deterministic([torch.ones(1)]):
        assert asked() == before
    with deterministic([SimpleNamespace(device=torch.device("cuda", 0))]):
        assert asked() == (True, False, False)
        give_up()
        assert not asked()[0]
    assert asked() == before and os.environ["CUBLAS_WORKSPACE_CONFIG"]


def test_an_operation_without_a_deterministic_form_is_named_and_taken(blocks, tmp_path, caplog):  # noqa: F811
    weight = torch.nn.Parameter(torch.ones(1))
    calls = []

    def of(batch):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set ...")
        return (weight * 2).sum()

    history = train({"w": weight}, Loss(of), *blocks, options(), seed=0, checkpoint=tmp_path, label="test")
    assert [row["changed"] for row in history.changes] == ["operations that are not deterministic"]
    assert "cumsum_cuda_kernel" in caplog.text and len(history.train) == options().steps


def test_store_keys_are_those_of_before(compose):
    plain = compose("recovery=prompt").recovery.options()
    assert not {"micro_batch_size", "checkpointing", "teacher"} & set(plain["training"])
    same = ["recovery.training.checkpointing=true", "recovery.training.teacher=streamed"]
    assert compose("recovery=prompt", *same).recovery.options() == plain
    smaller = compose("recovery=prompt", "recovery.training.micro_batch_size=1").recovery.options()
    assert smaller["training"] == plain["training"] | {"micro_batch_size": 1}


def test_tune_takes_the_options(open_tiny, blocks, tmp_path):  # noqa: F811
    loaded = open_tiny("llama")
    start = initial(loaded, 5, "vocabulary", "", 0)
    prompts = [
        tune(RepairContext(loaded, 3, tmp_path / str(n), tmp_path, blocks), start, options(**changes))[0]
        for n, changes in enumerate(({}, {"checkpointing": True}, {"micro_batch_size": 1}))
    ]
    assert torch.equal(prompts[0], prompts[1])
    torch.testing.assert_close(prompts[0], prompts[2], atol=1e-4, rtol=1e-4)
