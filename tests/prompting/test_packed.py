"""Rows end to end attend as they would alone: against a plain softmax over what each token may see."""

import gc
import weakref

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from idp.beginning import Beginning
from idp.errors import UserError
from idp.evaluate.batching import Request, make_row
from idp.evaluate.engine import LocalEngine
from idp.models import LoadedModel
from idp.prompting.attention import plain
from idp.prompting.attention.group import TRUNK
from idp.prompting.attention.weighing import Weighing
from idp.prompting.packed import Reached, attend, packed_attention
from idp.prompting.packing import CPU_SCORES, in_groups, pack
from idp.prompting.prefix import Prefixes, bind
from idp.prompting.repaired import RepairedModel, logits_at
from idp.prompting.selectors.attention import Attention


def random_prefixes(lengths, kv_heads, dim):
    longest = max(lengths)
    keys, values = (torch.randn(len(lengths), kv_heads, longest, dim) for _ in range(2))
    return Prefixes([keys], [values], torch.tensor(lengths))


def plainly(query, key, value, visible, scaling):
    """One token's attention over the keys it sees; query [heads, dim], key and value [keys, kv_heads, dim]."""
    heads = query.shape[0]
    key, value = (t[visible].repeat_interleave(heads // t.shape[1], dim=1) for t in (key, value))
    weights = (torch.einsum("hd,khd->hk", query, key) * scaling).softmax(-1)
    return torch.einsum("hk,khd->hd", weights, value)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("prompted", [True, False])
def test_attention_equals_a_plain_softmax(open_tiny, window, prompted):
    torch.manual_seed(0)
    model = open_tiny("llama").model  # 4 heads, 2 of them for keys
    heads, kv_heads, dim = 4, 2, 8
    # Trunk lengths, and the lengths of the branches behind each.
    shapes = [(130, [3, 5]), (120, []), (128, [1]), (12, [2, 2, 2]), (9, []), (290, [4, 1])]  # one is in long blocks
    branches = [
        [TRUNK] * trunk + [i for i, size in enumerate(sizes, 1) for _ in range(size)] for trunk, sizes in shapes
    ]
    positions = [[*range(trunk), *(trunk + step for size in sizes for step in range(size))] for trunk, sizes in shapes]
    tokens = [[1] * len(row) for row in branches]
    choice = [0, 1, 2, 1, 1, 2] if prompted else None  # rows behind two prompts of one length share a group
    prefixes = random_prefixes([6, 50, 6], kv_heads, dim) if prompted else None
    packed = pack(tokens, positions, branches, choice, prefixes, model, torch.device("cpu"))
    total = sum(map(len, tokens))
    assert packed.tokens.shape == (1, total), "nothing is padded"
    query, key, value = (torch.randn(total, n, dim) for n in (heads, kv_heads, kv_heads))
    prefix = (prefixes.keys[0], prefixes.values[0]) if prompted else None
    found = plain.attend(packed, query, key, value, prefix, Weighing(0.3, window))

    for row, kinds in enumerate(branches):
        start, n = packed.starts[row], 0
        keys, values = key[start : start + len(kinds)], value[start : start + len(kinds)]
        if prompted:
            n = int(prefixes.lengths[choice[row]])
            keys, values = (
                torch.cat([own[choice[row], :, :n].transpose(0, 1), rest])
                for own, rest in zip(prefix, (keys, values), strict=True)
            )
        at = torch.tensor([*range(n), *(place + n for place in positions[row])])
        assert packed.positions[0, start : start + len(kinds)].tolist() == at[n:].tolist()
        for place, kind in enumerate(kinds):
            own = torch.tensor([other in (TRUNK, kind) and earlier <= place for earlier, other in enumerate(kinds)])
            visible = torch.cat([torch.ones(n, dtype=torch.bool), own])
            if window is not None:
                visible &= at > at[n + place] - window
            expected = plainly(query[start + place], keys, values, visible, 0.3)
            torch.testing.assert_close(found[start + place], expected, atol=1e-5, rtol=1e-5)


def test_groups_hold_rows_of_about_one_length_behind_prefixes_of_one_length(open_tiny):
    model = open_tiny("llama").model
    lengths, before = [100] * 40 + [50] * 40, [25, 5] * 40
    groups = in_groups(lengths, before, model, torch.device("cpu"))
    assert sorted(row for group in groups for row in group) == list(range(80))
    for group in groups:
        assert len({before[row] for row in group}) == 1
        width = lengths[group[0]]
        assert 4 * len(group) * width * (width + before[group[0]]) <= CPU_SCORES
    assert len(groups) == 4


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_capped_scores_are_capped_as_the_model_s_own_attention_does(open_tiny, implementation):
    model = open_tiny("gemma2").model
    model.set_attn_implementation(implementation)
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = 0.001  # all but flattens the scores
    tokens = torch.randint(1, 250, (1, 40), generator=torch.Generator().manual_seed(0))
    rows, places = tokens.tolist(), [list(range(40))]
    packed = pack(rows, places, [[TRUNK] * 40], None, None, model, torch.device("cpu"))
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
        with packed_attention(model, packed, None) as inputs:
            found = model(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_model_whose_attention_cannot_be_replaced_is_refused(open_tiny, monkeypatch):
    model = open_tiny("llama").model
    packed = pack([[1, 2]], [[0, 1]], [[TRUNK] * 2], None, None, model, torch.device("cpu"))
    monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    with pytest.raises(UserError, match="its attention cannot be replaced"), packed_attention(model, packed, None):
        pass


def used(loaded, bank):
    """A model that was scored, chose among prompts, ran and extended them and generated; only its weak reference."""
    repaired = RepairedModel(loaded, bank, Attention(layer=1))
    engine, contexts = LocalEngine(repaired), [[5, 6, 7], [8, 9, 10, 11]]
    rows = [make_row([Request(c, [3, 4]), Request(c, [2])], [2 * n, 2 * n + 1], c) for n, c in enumerate(contexts)]
    engine.score_batch(rows, [])
    engine.score_batch(rows, [1, 2])
    engine.generate_batch(contexts, [], 2)
    return weakref.ref(repaired.model)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_nothing_keeps_a_model_that_was_measured(model_folders, make_bank, family):
    folder = model_folders(family)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    loaded = LoadedModel(model, AutoTokenizer.from_pretrained(folder))
    bank = make_bank(loaded, [5, 9])
    prefixes = bind(model, bank, Beginning())
    keys = weakref.ref(prefixes.keys[0])
    held = used(loaded, bank)
    assert held() is model
    del loaded, model, prefixes
    gc.collect()
    assert held() is None, [type(holder).__name__ for holder in gc.get_referrers(held())]
    assert keys() is None, "nor its prompts"


def test_attention_is_the_model_s_own_again_for_whoever_leaves_early(open_tiny):
    model = open_tiny("llama").model
    own = model.config._attn_implementation
    packed = pack([[1, 2, 3]], [[0, 1, 2]], [[TRUNK] * 3], None, None, model, torch.device("cpu"))
    for bare in (True, False):
        for _ in logits_at(model, packed, torch.tensor([0, 1]), None, bare):
            assert model.config._attn_implementation == own
            break
    with pytest.raises(Reached), packed_attention(model, packed, None, stop_at=1) as inputs:
        model(**inputs)
    assert model.config._attn_implementation == own
    with pytest.raises(RuntimeError, match="within `packed_attention` only"):
        attend(model.model.layers[0].self_attn, *torch.zeros(3, 1, 4, 3, 16))


def test_passes_of_two_models_do_not_mix(open_tiny):
    models = [open_tiny(family).model for family in ("llama", "qwen2")]
    packs = [
        pack([t], [list(range(len(t)))], [[TRUNK] * len(t)], None, None, m, torch.device("cpu"))
        for m, t in zip(models, ([1, 2, 3], [4, 5, 6, 7, 8]), strict=True)
    ]
    with torch.no_grad(), packed_attention(models[0], packs[0], None) as outer:
        with packed_attention(models[1], packs[1], None) as inner:
            second = models[1](**inner).logits
        first = models[0](**outer).logits
    for model, packed, found in zip(models, packs, (first, second), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(found, model(input_ids=packed.tokens).logits, atol=1e-4, rtol=1e-4)
