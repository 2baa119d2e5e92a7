"""Plain attention is torch's fused one, gradients included, and is used where it says."""

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from idp.prompting.prefix import behind
from idp.recover.nets import attention
from idp.recover.nets.attention import PLAIN, attend, attend_without_mask, lower_right, training_attention

from ...conftest import FAMILIES

WIDTH, LENGTH = 6, 9


class Layer:
    is_causal = True

    def __init__(self, groups):
        self.num_key_value_groups = groups


def masks():
    visible = torch.ones(WIDTH, LENGTH, dtype=torch.bool).tril(LENGTH - WIDTH)[None, None]
    added = torch.zeros(visible.shape).masked_fill_(~visible, torch.finfo(torch.float32).min)
    return {"visible": visible, "added": added, "of each row": visible.repeat(2, 1, 1, 1)}


@pytest.mark.parametrize("kind", ["visible", "added", "of each row", "causal"])
@pytest.mark.parametrize("groups", [1, 3])
def test_outputs_and_gradients_are_the_same(kind, groups):
    torch.manual_seed(0)
    mask = masks().get(kind)
    keys = WIDTH if mask is None else LENGTH
    found = []
    start = [
        torch.randn(2, heads, length, 8) for heads, length in ((6, WIDTH), (6 // groups, keys), (6 // groups, keys))
    ]
    slope = torch.randn(2, WIDTH, 6, 8)
    for function in (sdpa_attention_forward, attend):
        given = [tensor.clone().requires_grad_() for tensor in start]
        output, weights = function(Layer(groups), *given, mask, scaling=0.3)
        output.backward(slope)
        assert weights is None
        found.append([output.detach(), *(tensor.grad for tensor in given)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_what_plain_products_cannot_do_is_left_to_torch(monkeypatch):
    calls = []
    monkeypatch.setattr(
        attention, "sdpa_attention_forward", lambda *given, **named: calls.append(named) or (None, None)
    )
    query = torch.randn(1, 2, WIDTH, 8)
    key = torch.randn(1, 2, LENGTH, 8)
    attend(Layer(1), query, key, key, None)  # a cache of unknown visibility
    attend(Layer(1), query, query, query, None, dropout=0.1)
    attend(Layer(1), query, query, query, None, softcap=5.0)
    attend(Layer(1), query, query, query, None, is_causal=False)
    monkeypatch.setattr(attention, "SCORES", WIDTH * WIDTH * 2 - 1)
    attend(Layer(1), query, query, query, None)
    assert len(calls) == 5


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gemma2"])
def test_a_model_gives_the_same_loss_and_gradient(family, open_tiny):
    model = open_tiny(family).model
    tokens = torch.randint(5, 50, (2, 12), generator=torch.Generator().manual_seed(1))
    before, found = model.config.get_text_config()._attn_implementation, []
    for plain in (False, True):
        embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
        if plain:
            with training_attention(model):
                assert model.config.get_text_config()._attn_implementation == (PLAIN if before == "sdpa" else before)
                loss = model(inputs_embeds=embedded, labels=tokens).loss
        else:
            loss = model(inputs_embeds=embedded, labels=tokens).loss
        loss.backward()
        found.append((loss.detach(), embedded.grad))
    assert model.config.get_text_config()._attn_implementation == before
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("groups", [1, 3])
def test_none_for_a_mask_is_the_causal_one_that_ends_at_the_last_key(groups):
    torch.manual_seed(0)
    start = [
        torch.randn(2, heads, length, 8) for heads, length in ((6, WIDTH), (6 // groups, LENGTH), (6 // groups, LENGTH))
    ]
    slope, found = torch.randn(2, WIDTH, 6, 8), []

    def by_kernel(_, query, key, value, mask, scaling):
        return lower_right(query, key, value, scaling=scaling).transpose(1, 2), None

    functions = {sdpa_attention_forward: masks()["visible"], attend_without_mask: None, by_kernel: None}
    for function, mask in functions.items():
        given = [tensor.clone().requires_grad_() for tensor in start]
        output, _ = function(Layer(groups), *given, mask, scaling=0.3)
        output.backward(slope)
        found.append([output.detach(), *(tensor.grad for tensor in given)])
    for one, *others in zip(*found, strict=True):
        for other in others:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("width", [12, 30])  # within the sliding windows of 24 tokens, and beyond them
def test_models_are_called_without_a_mask_where_it_says_nothing_more(family, width, open_tiny):
    """As on a card: the loss behind a prompt, and of text alone, is that with the mask."""
    model = open_tiny(family).model
    tokens = torch.randint(5, 50, (2, width), generator=torch.Generator().manual_seed(1))
    prompt = torch.randn(5, 64, generator=torch.Generator().manual_seed(2)) * 0.3
    config = model.config.get_text_config()
    before, found = config._attn_implementation, []
    for maskless in (False, True):
        leaf = prompt.clone().requires_grad_()
        inputs = behind(model, leaf, tokens)
        with training_attention(model):
            config._attn_implementation = attention.MASKLESS if maskless and before == "sdpa" else before
            called = attention.unmasked(model, inputs)
            logits = model(**called).logits
            plain = model(input_ids=tokens, use_cache=False).logits
        if maskless:
            windows = config.sliding_window is not None if hasattr(config, "sliding_window") else False
            dropped = before == "sdpa" and (family == "qwen2" or family == "qwen3" or not windows or width + 5 <= 24)
            assert (called["attention_mask"] is None) == dropped
        (gradient,) = torch.autograd.grad(logits.logsumexp(-1).sum(), leaf)
        found.append((logits.detach(), plain.detach(), gradient))
    assert config._attn_implementation == before
    torch.testing.assert_close(found[0], found[1], atol=2e-4, rtol=1e-3)
