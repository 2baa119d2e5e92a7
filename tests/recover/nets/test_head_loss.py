"""Losses in pieces at the output head equal the plain ones over all logits at once, and so do their gradients."""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from idp.models import LoadedModel
from idp.recover.nets import head_loss as losses
from idp.recover.objective import Objective

from ...conftest import FAMILIES
from ..test_training import options


def plain(objective, temperature, lm_weight, logits, targets, teacher):
    """By torch's own functions, over all logits."""
    lm = cross_entropy(logits.float(), targets)
    if objective == "lm":
        return lm
    given = log_softmax(teacher.float() / temperature, dim=-1)
    found = log_softmax(logits.float() / temperature, dim=-1)
    kl = kl_div(found, given, reduction="batchmean", log_target=True) * temperature**2
    return (1 - lm_weight) * kl + lm_weight * lm


CASES = [("lm", 1.0, 0.0), ("distill", 1.0, 0.0), ("distill", 2.0, 0.0), ("distill", 2.0, 0.3), ("distill", 1.0, 1.0)]


@pytest.mark.parametrize(("objective", "temperature", "lm_weight"), CASES)
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients(objective, temperature, lm_weight, bias, monkeypatch):
    monkeypatch.setattr(losses, "CPU_LOGITS", 7 * 50)  # seven places at a time: the last piece is smaller
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=bias).requires_grad_(False)
    hidden, targets = torch.randn(40, 16, generator=generator), torch.randint(50, (40,), generator=generator)
    teacher = torch.randn(40, 50, generator=generator) * 2
    loss = losses.lm(targets)
    if objective == "distill":
        loss = losses.distill(lambda places: teacher[places], temperature)
        loss = losses.mixture(loss, losses.lm(targets), lm_weight)

    def value_and_gradient(loss_of):
        leaf = hidden.clone().requires_grad_()
        found = loss_of(leaf)
        (3 * found).backward()  # whatever comes behind it scales the gradient
        return found.detach(), leaf.grad

    expected = value_and_gradient(lambda leaf: plain(objective, temperature, lm_weight, head(leaf), targets, teacher))
    for found in (
        value_and_gradient(lambda leaf: losses.head_loss(leaf, head, loss)),
        value_and_gradient(lambda leaf: losses.logits_loss(head(leaf), loss)),
    ):
        torch.testing.assert_close(found[0], expected[0], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found[1], expected[1], atol=1e-7, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(losses.head_loss(hidden, head, loss), expected[0], atol=1e-6, rtol=1e-6)


def test_bfloat16_rounds_as_the_plain_way_does():
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(64, 500, bias=False).requires_grad_(False).bfloat16()
    hidden = torch.randn(40, 64, generator=generator).bfloat16()
    targets = torch.randint(500, (40,), generator=generator)
    one, other = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    found, expected = losses.head_loss(one, head, losses.lm(targets)), cross_entropy(head(other).float(), targets)
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=2e-2)


@pytest.mark.parametrize("objective", ["lm", "distill"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture(family, objective, open_tiny):
    """Also where a soft cap follows the head, and the loss must go through all logits."""
    loaded, teacher = open_tiny(family), open_tiny(family)
    with torch.no_grad():
        for parameter in teacher.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    tokens = torch.randint(1, 250, (2, 12), generator=torch.Generator().manual_seed(1))
    embedded = loaded.model.get_input_embeddings()(tokens)
    settings = options(objective=objective, temperature=1.5, lm_weight=0.2)

    def value_and_gradient(loss_of):
        leaf = embedded.clone().requires_grad_()
        found = loss_of(leaf)
        found.backward()
        return found.detach(), leaf.grad

    def expected_loss(leaf):
        logits = loaded.model(inputs_embeds=leaf).logits[:, :-1].flatten(0, 1)
        with torch.no_grad():
            given = teacher.model(tokens).logits[:, :-1].flatten(0, 1)
        return plain(objective, 1.5, 0.2, logits, tokens[:, 1:].flatten(), given)

    own = Objective(settings, loaded, teacher)
    assert own.bare == (family != "gemma2")
    found = value_and_gradient(lambda leaf: own(loaded.model, tokens, {"inputs_embeds": leaf, "use_cache": False}))
    expected = value_and_gradient(expected_loss)
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-3)


def test_no_tensor_of_all_logits_is_made(open_tiny, monkeypatch):
    """Neither in the forward pass nor in the backward pass is there one with a row for every place."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Widest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if not isinstance(tensor, torch.Tensor) or tensor.untyped_storage().data_ptr() == weight:
                    continue
                if tensor.dim() and tensor.shape[-1] == vocabulary:
                    self.rows = max(self.rows, tensor.numel() // vocabulary)
            return out

    loaded = open_tiny("qwen2")  # an untied head
    head = loaded.model.get_output_embeddings().weight
    vocabulary, weight = head.shape[0], head.untyped_storage().data_ptr()
    monkeypatch.setattr(losses, "CPU_LOGITS", 8 * vocabulary)
    tokens = torch.randint(1, 250, (4, 30))
    leaf = loaded.model.get_input_embeddings()(tokens).requires_grad_()
    objective = Objective(options(), loaded, None)
    with Widest() as widest:
        objective(loaded.model, tokens, {"inputs_embeds": leaf, "use_cache": False}).backward()
    assert widest.rows == 8
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_a_teacher_of_another_vocabulary_is_refused(open_tiny):
    from idp.errors import UserError

    loaded, other = open_tiny("llama"), open_tiny("llama")
    other.model.resize_token_embeddings(300)
    with pytest.raises(UserError, match="has a vocabulary of 257, the dense one 300; use objective=lm"):
        Objective(options(objective="distill"), loaded, LoadedModel(other.model, other.tokenizer))
