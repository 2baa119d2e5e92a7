"""LLaMA-Adapter's prefix: nothing at first, its own attention afterwards, in every way in which a model is run."""

import pytest
import torch
from torch.nn.functional import softmax

from idp import models
from idp.errors import UserError
from idp.prompting.attention.group import TRUNK
from idp.prompting.packing import pack
from idp.prompting.repaired import RepairedModel
from idp.prompting.shapes import kv_shape
from idp.recover import opening
from idp.recover.gated_prefix import FILE, GatedPrefix
from idp.recover.nets.gated_attention import OUTPUTS, attentions, put_on, query_heads, unrotated
from idp.recover.weight_side import WeightSide

FAMILIES = ["llama", "opt", "qwen3", "gemma2", "gemma3_text", "mistral"]
TOKENS = torch.tensor([[3, 40, 41, 42, 90, 17, 5], [8, 9, 200, 11, 12, 13, 14]])


def drawn(model, positions=5, seed=0):
    """Keys, values and gates of a prefix, all of them with an effect."""
    draw = torch.Generator().manual_seed(seed)
    layers, (kv_heads, head_dim) = len(attentions(model)), kv_shape(model.config)
    keys, values = torch.randn(2, layers, positions, kv_heads, head_dim, generator=draw).unbind(0)
    return keys, values, torch.randn(layers, query_heads(model), generator=draw)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gate_of_zero_is_no_prefix_bit_for_bit(family, open_tiny):
    loaded = open_tiny(family)
    with torch.no_grad():
        expected = loaded.model(TOKENS).logits
        keys, values, gates = drawn(loaded.model)
        attached = put_on(loaded.model, keys, values, torch.zeros_like(gates))
        assert torch.equal(loaded.model(TOKENS).logits, expected)
        attached.take_off()
        put_on(loaded.model, keys, values, gates)
        assert (loaded.model(TOKENS).logits - expected).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_its_share_is_the_formulas(family, open_tiny):
    """Of each head alone: queries as the model's own modules give them, a softmax over the prefix, the gate's tanh."""
    model = open_tiny(family).model
    keys, values, gates = drawn(model)
    taken = {}
    for layer, attention in enumerate(attentions(model)):
        output = next(getattr(attention, name) for name in OUTPUTS if hasattr(attention, name))
        attention.q_proj.register_forward_hook(lambda m, i, o, layer=layer: taken.__setitem__(("q", layer), o))
        output.register_forward_pre_hook(lambda m, i, layer=layer: taken.__setitem__(("before", layer), i[0]))
    put_on(model, keys, values, gates)
    for layer, attention in enumerate(attentions(model)):
        output = next(getattr(attention, name) for name in OUTPUTS if hasattr(attention, name))
        output.register_forward_pre_hook(lambda m, i, layer=layer: taken.__setitem__(("after", layer), i[0]))
    with torch.no_grad():
        model(TOKENS)
    heads, (kv_heads, head_dim) = query_heads(model), kv_shape(model.config)
    for layer, attention in enumerate(attentions(model)):
        queries = taken["q", layer].view(*TOKENS.shape, heads, head_dim)
        queries = attention.q_norm(queries) if hasattr(attention, "q_norm") else queries
        for head in range(heads):
            kv = head // (heads // kv_heads)
            scores = queries[:, :, head] @ keys[layer, :, kv].T * attention.scaling
            expected = gates[layer, head].tanh() * (softmax(scores, -1) @ values[layer, :, kv])
            shape = (*TOKENS.shape, heads, head_dim)
            added = (taken["after", layer] - taken["before", layer]).view(shape)[:, :, head]
            torch.testing.assert_close(added, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_and_a_cache_see_the_same(family, open_tiny):
    loaded = open_tiny(family)
    put_on(loaded.model, *drawn(loaded.model))
    rows = [row[:length].tolist() for row, length in zip(TOKENS, (7, 4), strict=True)]
    repaired = RepairedModel(loaded)
    places = [list(range(len(row))) for row in rows]
    packed = pack(rows, places, [[TRUNK] * len(row) for row in rows], None, None, loaded.model, repaired.device)
    wanted = [packed.starts[row] + place for row in range(2) for place in places[row]]
    with torch.no_grad():
        found = torch.cat([logits for _, logits in repaired.logits_at(packed, torch.tensor(wanted))])
        plain = [loaded.model(torch.tensor([row])).logits[0] for row in rows]
        torch.testing.assert_close(found, torch.cat(plain), atol=1e-4, rtol=0)
        first = loaded.model(TOKENS[:1, :4], use_cache=True)
        rest = loaded.model(TOKENS[:1, 4:], past_key_values=first.past_key_values).logits[0]
        torch.testing.assert_close(rest, plain[0][4:], atol=1e-4, rtol=0)


def test_it_starts_as_what_real_tokens_give_before_positions(open_tiny):
    """Without rotation one token alone gives the first layer the same keys wherever it stands."""
    model = open_tiny("llama").model
    keys, values = unrotated(model, lambda: model(TOKENS[:1]))
    attention = attentions(model)[0]
    with torch.no_grad():
        normed = model.model.layers[0].input_layernorm(model.get_input_embeddings()(TOKENS[:1]))
        for found, projection in ((keys, attention.k_proj), (values, attention.v_proj)):
            torch.testing.assert_close(found[0], projection(normed)[0].unflatten(-1, (2, 16)))
    assert keys.shape == (2, 7, 2, 16)


def test_it_is_stored_counted_attached_and_taken_off(recovered, tmp_path):
    config, dense, repair = recovered("gated_prefix", "recovery.training.learning_rate=0.05")
    count = 5 * 2 * 2 * 2 * 16 + 2 * 4  # keys and values of 2 heads of 16 in 2 layers; a gate for each of 4 heads
    found = repair.read("repair.json")
    assert (found["added"], found["trainable"], found["bytes"]) == (count, count, 4 * count)
    empty = models.open_empty(models.model_folder(dense), config.model)
    assert config.recovery.numbers(empty) == count
    variants = opening.open_variants(config.model, dense, repair, config.recovery, merged=True)
    plain = models.open_model(models.model_folder(dense), config.model).model
    with torch.no_grad():
        expected = plain(TOKENS).logits
        for name, same in (("gated_prefix", False), ("compressed", True), ("gated_prefix", False)):
            assert torch.equal(variants.ready(name).model(TOKENS).logits, expected) is same
    assert list(variants) == ["compressed", "gated_prefix"]
    sentence = GatedPrefix.export(repair.path / "own", tmp_path)
    assert "idp.load" in sentence
    loaded = WeightSide("gated_prefix", own=tmp_path).attach(
        models.open_model(models.model_folder(dense), config.model)
    )
    with torch.no_grad():
        assert torch.equal(loaded.model(TOKENS).logits, variants.ready("gated_prefix").model(TOKENS).logits)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_the_loss_at_its_start_is_that_of_no_repair(recovered, text):
    from idp.recover import making
    from idp.recover.objective import text_loss

    config, dense, repair = recovered("gated_prefix")
    loaded = models.open_model(models.model_folder(dense), config.model)
    heldout = making._text(config.recovery.training, text, loaded, 0)[1]
    with torch.no_grad():
        expected = text_loss(loaded, config.recovery.training, None)(heldout).item()
    assert repair.read("history.json")["gated_prefix"]["heldout"][0]["loss"] == pytest.approx(expected, abs=1e-6)


def test_other_attention_is_refused_by_name(open_tiny, recovered):
    with pytest.raises(UserError, match="of GPT2LMHeadModel's 2 layers 0 have q_proj, k_proj, v_proj and o_proj or"):
        attentions(open_tiny("gpt2").model)
    _, _, repair = recovered("gated_prefix")
    with pytest.raises(UserError, match=r"a gated prefix for \(2, 4\) layers and heads, with 128 numbers a position"):
        GatedPrefix.attach(open_tiny("opt"), repair.path / "own")
    (repair.path / "own" / FILE).write_bytes(b"nothing")
    with pytest.raises(UserError, match="the gated prefix cannot be read"):
        GatedPrefix.attach(open_tiny("llama"), repair.path / "own")
