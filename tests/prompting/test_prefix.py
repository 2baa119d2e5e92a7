"""A cached prefix gives what the plain way gives: embeddings in front of the input, one full forward pass."""

import json

import pytest
import torch

from idp.prompting.attention.group import TRUNK
from idp.prompting.bank import PromptBank
from idp.prompting.packing import pack
from idp.prompting.prefix import bind
from idp.prompting.repaired import RepairedModel
from idp.prompting.selectors.base import Selector
from idp.prompting.shapes import prefix_width

from ..conftest import FAMILIES


class ByFirstToken(Selector):
    """Picks prompt `first token mod m`: any selector will do here."""

    def scores(self, contexts):
        m = len(self.prefixes.lengths)
        return torch.nn.functional.one_hot(torch.tensor([context[0] % m for context in contexts]), m).float()


def plain_logits(loaded, prompt, tokens):
    embedded = loaded.model.get_input_embeddings()(torch.tensor([tokens]))
    whole = torch.cat([prompt[None], embedded], dim=1)
    with torch.no_grad():
        return loaded.model(inputs_embeds=whole).logits[0, len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_prefix_equals_concatenated_embeddings(family, open_tiny, make_bank):
    loaded = open_tiny(family)
    bank = make_bank(loaded, [5, 9, 30])
    repaired = RepairedModel(loaded, bank, ByFirstToken())
    contexts = [[3, 40, 41, 42, 43], [4, 50], [5, *range(60, 100)], [6, 70, 71]]
    choice = repaired.choose(contexts)
    assert choice.tolist() == [0, 1, 2, 0]

    positions = [list(range(len(context))) for context in contexts]
    trunks = [[TRUNK] * len(context) for context in contexts]
    packed = pack(contexts, positions, trunks, choice.tolist(), repaired.prefixes, loaded.model, repaired.device)
    wanted = [packed.starts[row] + place for row, context in enumerate(contexts) for place in range(len(context))]
    with torch.no_grad():
        parts = [logits for _, logits in repaired.logits_at(packed, torch.tensor(wanted))]
    found = torch.cat(parts)

    expected = torch.cat(
        [plain_logits(loaded, bank.prompts[prompt], context) for prompt, context in zip(choice, contexts, strict=True)]
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_prompts_matter(open_tiny, make_bank):
    loaded = open_tiny("llama")
    bank = make_bank(loaded, [5, 9])
    one, other = (plain_logits(loaded, prompt, [3, 4, 5]) for prompt in bank.prompts)
    assert (one - other).abs().max() > 1e-2


def test_a_prompt_of_another_hidden_size_is_refused(open_tiny):
    from idp.errors import UserError

    loaded = open_tiny("llama")
    with pytest.raises(UserError, match="stranger has hidden size 32, the model 64"):
        bind(loaded.model, PromptBank([torch.zeros(4, 32)], ["stranger"]))


def test_bank_round_trip(open_tiny, make_bank, tmp_path):
    loaded = open_tiny("llama")
    bank = make_bank(loaded, [5, 9])
    bank.save(tmp_path, loaded.model.config, "base")
    again = PromptBank.load(tmp_path)
    assert again.names == bank.names and again.lengths == [5, 9] and again.parameters == 14 * 64
    for one, other in zip(bank.prompts, again.prompts, strict=True):
        assert torch.equal(one, other)


def test_a_bank_says_which_folder_is_whose(open_tiny, make_bank, tmp_path):
    loaded = open_tiny("llama")
    bank = make_bank(loaded, [5, 9])
    bank.save(tmp_path, loaded.model.config, "base")
    for old, new in (("prompt_0", "aside"), ("prompt_1", "prompt_0"), ("aside", "prompt_1")):
        (tmp_path / old).rename(tmp_path / new)
    described = json.loads((tmp_path / "bank.json").read_text())
    (tmp_path / "bank.json").write_text(json.dumps({**described, "folders": ["prompt_1", "prompt_0"]}))
    assert torch.equal(PromptBank.load(tmp_path).prompts[1], bank.prompts[1])


def test_peft_loads_a_single_prompt_with_equal_logits(open_tiny, make_bank, tmp_path):
    from peft import PeftModel

    loaded = open_tiny("llama")
    bank = make_bank(loaded, [5, 9])
    bank.save(tmp_path, loaded.model.config, "base")
    tokens = [3, 4, 5, 6]
    expected = plain_logits(loaded, bank.prompts[1], tokens)
    adapted = PeftModel.from_pretrained(loaded.model, tmp_path / "prompt_1").eval()
    with torch.no_grad():
        found = adapted(input_ids=torch.tensor([tokens])).logits[0, -len(tokens) :]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "opt", "qwen2", "qwen3"])
def test_peft_loads_a_prefix_with_equal_logits(family, open_tiny, tmp_path):
    """A bank of trained prefixes, as `save` writes it, is what PEFT's prefix tuning reads."""
    from peft import PeftModel

    loaded = open_tiny(family)
    wide = prefix_width(loaded.model.config)
    prompts = [torch.randn(n, wide, generator=torch.Generator().manual_seed(n)) for n in (5, 9)]
    bank = PromptBank(prompts, ["a", "b"], "prefix")
    bank.save(tmp_path, loaded.model.config, "base")
    again = PromptBank.load(tmp_path)
    assert again.kind == "prefix" and all(torch.equal(a, b) for a, b in zip(again.prompts, prompts, strict=True))
    repaired = RepairedModel(loaded, again, ByFirstToken())
    tokens = [3, 40, 41, 42]  # the first token picks the second prompt
    packed = pack([tokens], [range(4)], [[TRUNK] * 4], [1], repaired.prefixes, loaded.model, repaired.device)
    with torch.no_grad():
        found = torch.cat([part for _, part in repaired.logits_at(packed, torch.arange(4))])
    assert repaired.choose([tokens]).tolist() == [1]
    adapted = PeftModel.from_pretrained(open_tiny(family).model, tmp_path / "prompt_1").eval()
    with torch.no_grad():
        ids = torch.tensor([tokens])
        expected = adapted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -4:]
        plain = loaded.model(ids).logits[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found - plain).abs().max() > 1e-2


def test_a_prefix_of_another_model_is_refused(open_tiny):
    from idp.errors import UserError

    bank = PromptBank([torch.zeros(4, 96)], ["stranger"], "prefix")
    with pytest.raises(UserError, match="prefix stranger has keys and values of 96, the model 128: it belongs"):
        bind(open_tiny("llama").model, bank)
