"""The token at the beginning in the attention selector, in stored banks and in what PEFT is given."""

import json
from types import SimpleNamespace

import pytest
import torch

from idp.beginning import Beginning
from idp.export.repair import _save_prompts
from idp.prompting.bank import PromptBank
from idp.prompting.prefix import bind
from idp.prompting.repaired import RepairedModel
from idp.prompting.selectors.attention import Attention
from idp.prompting.states import embedded, flatten, run_prompt
from idp.recover import existing
from idp.recover.banks import assembled

from .test_attention_selector import CONTEXTS

BOS = 257
TOKENS = [3, 4, 5, 6, 90]


def shares(loaded, bank, context, softmax, reduce):
    """Each prompt's score at layer 0 by one eager pass over [BOS | prompt 1 | ... | prompt m | input]."""
    model = loaded.model
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    n, m, t = bank.lengths[0], len(bank), len(context)
    whole = torch.cat([embedded(model, [BOS]), *bank.prompts, embedded(model, context)])[None]
    positions = torch.cat([torch.zeros(1, dtype=torch.long), (1 + torch.arange(n)).repeat(m), 1 + n + torch.arange(t)])
    size, start = 1 + n * m + t, 1 + n * m
    visible = torch.ones(size, size, dtype=torch.bool).tril()
    for i in range(m):
        own = slice(1 + i * n, 1 + (i + 1) * n)
        visible[own, 1:] = False
        visible[own, own] = torch.ones(n, n, dtype=torch.bool).tril()
    mask = torch.zeros(1, 1, size, size).masked_fill(~visible, torch.finfo(torch.float32).min)
    with torch.no_grad():
        weights = model(
            inputs_embeds=whole, attention_mask=mask, position_ids=positions[None], output_attentions=True
        ).attentions[0][0]
    model.set_attn_implementation(before)
    parts = [weights[:, start:, 1 + i * n : 1 + (i + 1) * n] for i in range(m)]
    return torch.stack([(part.sum(-1) if reduce == "sum" else part.mean(-1)).mean() for part in parts])


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_what_the_bos_draws_is_no_prompt_s(open_bos, make_bank, family, reduce):
    loaded = open_bos(family)
    bank = make_bank(loaded, [6, 6, 6])
    bank.beginning = Beginning((BOS,), "before")
    selector = Attention(0, "post", reduce, None)
    selector.bind(loaded.model, bind(loaded.model, bank))
    with torch.no_grad():
        found = selector.scores(CONTEXTS)
    wanted = torch.stack([shares(loaded, bank, context, "post", reduce) for context in CONTEXTS])
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("place", ["before", "after", "none"])
def test_a_bank_remembers_it(open_bos, make_bank, tmp_path, place):
    loaded = open_bos()
    bank = make_bank(loaded, [3, 4])
    bank.beginning = Beginning((BOS,), place)
    bank.save(tmp_path, loaded.model.config, "base")
    again = PromptBank.load(tmp_path)
    assert again.beginning == again.first().beginning == bank.beginning
    assert again.parameters == 7 * 64
    # Its own BOS holds also on a model whose texts have none.
    assert RepairedModel(open_bos(mode="never"), again.first()).beginning == bank.beginning


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("place", ["before", "after", "none"])
@pytest.mark.parametrize("family", ["llama", "opt", "gemma3_text"])
def test_peft_gives_the_same_logits(open_bos, make_bank, tmp_path, family, place, kind):
    """With text tokenized as docs/export.md says: without special tokens, but for a BOS behind the prompt."""
    from peft import PeftModel

    loaded = open_bos(family)
    prompt = make_bank(loaded, [4]).prompts[0]
    beginning = Beginning((BOS,), place)
    if kind == "prefix":
        layers = run_prompt(loaded.model, prompt, beginning.ahead_of_prompt)
        ahead = len(beginning.ahead_of_prompt)
        prompt = flatten([(keys[:, :, ahead:], values[:, :, ahead:]) for keys, values in layers])
    bank = PromptBank([prompt], ["one"], kind, beginning=beginning)
    bank.save(tmp_path / "bank", loaded.model.config, "base")
    run = SimpleNamespace(record={"idp": {"config": {"recovery": {"kind": kind}}}}, selector=None)
    _save_prompts(run, SimpleNamespace(path=tmp_path), loaded, tmp_path / "out", "me/mine")

    tokens = torch.tensor([beginning.ahead_of_text + TOKENS])
    size = tokens.shape[1]
    repaired = RepairedModel(loaded, bank)
    visible = torch.ones(1, size, size, dtype=torch.bool).tril()
    inputs = repaired.attention_inputs(visible, torch.arange(size)[None], torch.zeros(1, dtype=torch.long))
    with torch.no_grad():
        ours = loaded.model(input_ids=tokens, **inputs).logits[0]
        theirs = PeftModel.from_pretrained(loaded.model, tmp_path / "out" / "one")(input_ids=tokens).logits[0]
    assert (ours - theirs[-size:]).abs().max() < 1e-4

    # Read back, the rows of the BOS are none of the prompt's: neither as a bank, nor as a folder of it.
    again = PromptBank.load(tmp_path / "out")
    assert torch.equal(again.prompts[0], prompt) and again.beginning == beginning
    described = json.loads((tmp_path / "out" / "bank.json").read_text())
    assert described["bos"].get("virtual_tokens", 0) == (1 if place == "before" else 0)
    if kind == "prompt":
        for folder in (tmp_path / "out", tmp_path / "out" / "one"):
            (member,) = existing.prompts_at(str(folder), assembled.SETTING)
            assert torch.equal(member.prompt, prompt) and member.beginning == beginning
