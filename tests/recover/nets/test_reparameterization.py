"""Encoders start where they should, and what is folded is what they gave in training."""

import pytest
import torch

from idp import models
from idp.prompting.bank import PromptBank
from idp.prompting.states import flatten, run_prompt, unflatten
from idp.recover import making, prefix, ptune
from idp.recover.initial import initial
from idp.recover.tuning import loss_with


def maker_of(config, loaded):
    return (ptune if config.kind == "ptune" else prefix).encoder(config, loaded, seed=0)


METHODS = ["ptune-mlp", "ptune-lstm", "prefix", "prefix-mlp"]


@pytest.mark.parametrize("method", METHODS)
def test_with_residual_it_starts_at_the_initial_value(method, small, open_tiny):
    loaded, config = open_tiny("llama"), small(method).recovery
    start = initial(loaded, 5, "vocabulary", "", 0)
    if config.kind == "prefix":
        start = flatten(run_prompt(loaded.model, start))
    torch.testing.assert_close(maker_of(config, loaded)(), start, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["ptune-mlp", "ptune-lstm", "prefix-mlp"])
def test_without_it_is_the_encoders_output_alone(method, small, open_tiny):
    loaded = open_tiny("llama")
    maker = maker_of(small(method, "recovery.residual=false").recovery, loaded)
    with torch.no_grad():
        maker.mlp[-1].weight.zero_()
        maker.mlp[-1].bias.fill_(0.5)
    assert torch.equal(maker(), torch.full_like(maker(), 0.5))


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_learns(method, small, open_tiny):
    """After a step or two of training, nothing of the encoder is left without a gradient."""
    loaded, config = open_tiny("llama"), small(method).recovery
    maker = maker_of(config, loaded)
    loss_of = loss_with(loaded, maker, "prefix" if config.kind == "prefix" else "prompt", config.training, None)
    optimizer = torch.optim.SGD(maker.parameters(), lr=0.1)
    tokens = torch.randint(1, 250, (2, 16), generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(tokens).backward()
        optimizer.step()
    for name, parameter in maker.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("method", METHODS)
def test_the_folded_bank_gives_the_loss_of_training(method, recovered, text):
    """The stored bank alone, put before the held-out text, has the best loss that training saw with the encoder."""
    from idp.recover.nets.reparameterization import Itself

    config, dense, repair = recovered(method)
    loaded = models.open_model(models.model_folder(dense), config.model)
    bank = PromptBank.load(repair.path / "bank")
    training = config.recovery.training
    _, heldout = making._text(training, text, loaded, 0)
    loss_of = loss_with(loaded, Itself(bank.prompts[0]), bank.kind, training, None)
    with torch.no_grad():
        found = sum(loss_of(heldout[i : i + 2]).item() for i in (0, 2)) / 2
    assert found == pytest.approx(repair.read("history.json")["prompt_0"]["best_loss"], abs=1e-6)
    assert repair.read("repair.json")["added"] == bank.parameters == bank.prompts[0].numel()


@pytest.mark.parametrize("family", ["llama", "opt", "qwen3", "gemma3_text"])
def test_flatten_and_back(family, open_tiny):
    loaded = open_tiny(family)
    layers = run_prompt(loaded.model, initial(loaded, 4, "vocabulary", "", 0))
    for (keys, values), (k, v) in zip(layers, unflatten(loaded.model, flatten(layers)), strict=True):
        assert torch.equal(keys, k) and torch.equal(values, v)
