"""A model's own code behind its decoder, run on a few places, gives its logits and their gradient."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from idp.recover import live
from idp.recover import objective as objectives
from idp.recover.nets import ending as endings
from idp.recover.nets import head_loss
from idp.recover.nets.ending import Ending, ending_loss

from ..test_training import options


@pytest.mark.parametrize("family", ["gemma2", "llama", "gpt2"])
def test_loss_and_gradient_are_those_over_all_logits(family, open_tiny, monkeypatch):
    model = open_tiny(family).model
    monkeypatch.setattr(head_loss, "CPU_LOGITS", 5 * len(model.get_output_embeddings().weight))
    ending, tokens = Ending.of(model), torch.randint(1, 250, (2, 12), generator=torch.Generator().manual_seed(1))
    found = []
    for plain in (True, False):
        embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
        if plain:
            logits = model(inputs_embeds=embedded).logits[:, :-1].flatten(0, 1)
            loss = cross_entropy(logits, tokens[:, 1:].flatten())
        else:
            hidden = ending.hidden({"inputs_embeds": embedded})[:, :-1].flatten(0, 1)
            loss = ending_loss(hidden, ending, head_loss.lm(tokens[:, 1:].flatten()))
        (2 * loss).backward()
        found.append((loss.detach(), embedded.grad))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-4)
    assert "forward" not in model.base_model.__dict__


def test_a_model_that_cannot_be_told_apart_has_none(open_tiny):
    """OPT's language model goes past its base model."""
    assert Ending.of(open_tiny("opt").model) is None


@pytest.mark.parametrize("changes", [{}, {"objective": "distill", "temperature": 2.0, "lm_weight": 0.3}])
def test_objectives_behind_a_soft_cap(changes, open_tiny, monkeypatch):
    loaded, teacher = open_tiny("gemma2"), open_tiny("gemma2")
    with torch.no_grad():
        teacher.model.model.layers[0].mlp.down_proj.weight.mul_(0.5)
    tokens = torch.randint(1, 250, (3, 12), generator=torch.Generator().manual_seed(1))
    objective = objectives.Objective(options(**changes), loaded, teacher if changes else None)
    assert not objective.bare and not objective.endings  # on a CPU all at once
    expected = objective(loaded.model, tokens, {"input_ids": tokens, "use_cache": False})
    objective.endings = live.endings_of([loaded.model, *([teacher.model] if changes else [])])
    calls = []
    monkeypatch.setattr(endings.Ending, "logits", lambda *given, own=Ending.logits: calls.append(1) or own(*given))
    found = objective(loaded.model, tokens, {"input_ids": tokens, "use_cache": False})
    assert calls
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
