"""The attention selector against a plain, slow reference: all prompts and the input in one eager pass."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from idp.errors import UserError
from idp.prompting.prefix import bind
from idp.prompting.selectors.attention import Attention, AttentionSelector

CONTEXTS = [[3, 40, 41, 42, 43], [4, 50], [5, *range(60, 90)]]


def reference_scores(folder, bank, context, layer, softmax, reduce, heads):
    """Scores from `output_attentions` of one pass over [prompt 1 | ... | prompt m | input]; equal lengths only."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    n, m, t = bank.lengths[0], len(bank), len(context)
    embedded = model.get_input_embeddings()(torch.tensor([context]))
    whole = torch.cat([*(prompt[None] for prompt in bank.prompts), embedded], dim=1)
    positions = torch.cat([torch.arange(n).repeat(m), n + torch.arange(t)])[None]
    size = n * m + t
    visible = torch.zeros(size, size, dtype=torch.bool)
    for i in range(m):
        visible[i * n : (i + 1) * n, i * n : (i + 1) * n] = torch.ones(n, n, dtype=torch.bool).tril()
    visible[n * m :, : n * m] = True
    visible[n * m :, n * m :] = torch.ones(t, t, dtype=torch.bool).tril()
    mask = torch.zeros(1, 1, size, size).masked_fill(~visible, torch.finfo(torch.float32).min)
    with torch.no_grad():
        weights = model(
            inputs_embeds=whole, attention_mask=mask, position_ids=positions, output_attentions=True
        ).attentions[layer][0]
    weights = weights[:, n * m :]  # [heads, input tokens, all tokens]
    if heads is not None:
        weights = weights[heads]
    scores = []
    for i in range(m):
        part = weights[:, :, i * n : (i + 1) * n]
        scores.append((part.sum(-1) if reduce == "sum" else part.mean(-1)).mean())
    return torch.stack(scores)


@pytest.mark.parametrize("family", ["llama", "opt", "qwen3", "gpt2"])
@pytest.mark.parametrize(("reduce", "heads"), [("mean", None), ("sum", None), ("mean", [1, 3])])
def test_layer_0_equals_one_pass_over_all_prompts(family, reduce, heads, open_tiny, make_bank, model_folders):
    loaded = open_tiny(family)
    bank = make_bank(loaded, [6, 6, 6])
    selector = Attention(0, "post", reduce, heads)
    selector.bind(loaded.model, bind(loaded.model, bank))
    with torch.no_grad():
        found = selector.scores(CONTEXTS)
    expected = torch.stack(
        [reference_scores(model_folders(family), bank, c, 0, "post", reduce, heads) for c in CONTEXTS]
    )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("layer", [0, 1])
def test_before_the_softmax_with_unequal_lengths(layer, open_tiny, make_bank):
    """Each prompt is read as if it were alone: queries and keys of a plain pass over [prompt | input]."""
    loaded = open_tiny("llama")
    bank = make_bank(loaded, [4, 9])
    selector = Attention(layer, "pre", "mean", None)
    selector.bind(loaded.model, bind(loaded.model, bank))
    with torch.no_grad():
        found = selector.scores(CONTEXTS)
    for row, context in enumerate(CONTEXTS):
        for number, prompt in enumerate(bank.prompts):
            query, key = _queries_and_keys(loaded, prompt, context, layer)
            n = len(prompt)
            products = query[:, n:] @ key[:, :n].transpose(-1, -2) * query.shape[-1] ** -0.5
            torch.testing.assert_close(found[row, number], products.mean(), atol=1e-5, rtol=1e-4)


def _queries_and_keys(loaded, prompt, context, layer):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    model = loaded.model.model
    embedded = loaded.model.get_input_embeddings()(torch.tensor([context]))
    whole = torch.cat([prompt[None], embedded], dim=1)
    with torch.no_grad():
        states = loaded.model(inputs_embeds=whole, output_hidden_states=True).hidden_states[layer]
        block = model.layers[layer]
        normed = block.input_layernorm(states)
        shape = (1, whole.shape[1], -1, block.self_attn.head_dim)
        query = block.self_attn.q_proj(normed).view(shape).transpose(1, 2)
        key = block.self_attn.k_proj(normed).view(shape).transpose(1, 2)
        cos, sin = model.rotary_emb(states, torch.arange(whole.shape[1])[None])
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
    return query[0], key[0].repeat_interleave(block.self_attn.num_key_value_groups, dim=0)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("lengths", [[6, 6], [5, 12]])
def test_a_sliding_window_hides_prompts_as_it_does_from_the_model(family, lengths, open_tiny, make_bank, model_folders):
    """Layer 0 slides over 24 tokens: most of a long context sees no prompt at all."""
    loaded = open_tiny(family)
    bank = make_bank(loaded, lengths)
    selector = Attention(0, "post", "mean", None)
    selector.bind(loaded.model, bind(loaded.model, bank))
    contexts = [[3, *range(40, 100)], [4, 50], [5, *range(60, 90)]]
    with torch.no_grad():
        found = selector.scores(contexts)
    for row, context in enumerate(contexts):
        expected = windowed_reference(loaded.model, bank, context)
        torch.testing.assert_close(found[row], expected, atol=1e-6, rtol=1e-4)


def windowed_reference(model, bank, context, window=24):
    """Mean weights at layer 0 with all prompts in one softmax, out of the model's own attention behind each alone.

    Weights behind one prompt are a softmax over it and the input; the ratio of a prompt's weights to those of the
    input's own tokens is what it is in a softmax with others beside it. Positions differ by prompt, distances do not.
    """
    model.set_attn_implementation("eager")
    n, t, ratios = bank.lengths, len(context), []
    embedded = model.get_input_embeddings()(torch.tensor([context]))
    for prompt in bank.prompts:
        with torch.no_grad():
            weights = model(
                inputs_embeds=torch.cat([prompt[None], embedded], dim=1), output_attentions=True
            ).attentions[0][0][:, len(prompt) :]
        assert bool((weights[:, -1, : max(len(prompt) + t - window, 0)] == 0).all()), "the window hides what is far"
        own = weights[:, :, len(prompt) :].sum(-1)
        ratios.append(weights[:, :, : len(prompt)].sum(-1) / own)
    model.set_attn_implementation("sdpa")
    whole = 1 + sum(ratios)
    return torch.stack([(ratio / whole / length).mean() for ratio, length in zip(ratios, n, strict=True)])


def test_a_bound_on_scores_counts_where_the_model_heeds_it(open_tiny, make_bank):
    loaded = open_tiny("gemma2")
    loaded.model.set_attn_implementation("eager")
    for layer in loaded.model.model.layers:
        layer.self_attn.attn_logit_softcapping = 0.05  # all but flattens the scores
    bank = make_bank(loaded, [6, 6])
    selector = Attention(0, "post", "mean", None)
    selector.bind(loaded.model, bind(loaded.model, bank))
    with torch.no_grad():
        found = selector.scores(CONTEXTS)
    loaded.model.set_attn_implementation("eager")
    for row, context in enumerate(CONTEXTS):
        expected = windowed_reference(loaded.model, bank, context)
        loaded.model.set_attn_implementation("eager")
        torch.testing.assert_close(found[row], expected, atol=1e-6, rtol=1e-4)


def test_the_model_is_left_as_it_was(open_tiny, make_bank):
    loaded = open_tiny("llama")
    before = loaded.model.config._attn_implementation
    selector = Attention()
    selector.bind(loaded.model, bind(loaded.model, make_bank(loaded, [4, 9])))
    selector.scores(CONTEXTS)
    assert loaded.model.config._attn_implementation == before


def test_a_context_s_scores_do_not_depend_on_the_others(open_tiny, make_bank):
    loaded = open_tiny("llama")
    selector = Attention()
    selector.bind(loaded.model, bind(loaded.model, make_bank(loaded, [4, 9])))
    with torch.no_grad():
        together = selector.scores(CONTEXTS)
        alone = torch.cat([selector.scores([context]) for context in CONTEXTS])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_layers_and_heads_that_do_not_exist(open_tiny):
    shape = open_tiny("llama").model.config
    with pytest.raises(UserError, match="layers 0 to 1"):
        AttentionSelector("attention", 2, "post", "mean", None).check_model(shape)
    with pytest.raises(UserError, match="heads, 0 to 3"):
        AttentionSelector("attention", 0, "post", "mean", [4]).check_model(shape)
