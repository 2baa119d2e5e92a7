"""The empty prompt: behind it everything is as it is without a bank, however rows are packed, batched or stored."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from idp.beginning import Beginning
from idp.config import Storage
from idp.errors import UserError
from idp.evaluate.batching import Request, make_row
from idp.evaluate.engine import LocalEngine
from idp.evaluate.generation import decode, prefill
from idp.prompting.attention import fused
from idp.prompting.attention.group import TRUNK
from idp.prompting.bank import PromptBank
from idp.prompting.packing import pack
from idp.prompting.prefix import bind
from idp.prompting.repaired import RepairedModel
from idp.prompting.selectors.attention import Attention
from idp.prompting.selectors.base import Selector
from idp.prompting.selectors.fixed import Fixed
from idp.prompting.selectors.gain import Gain
from idp.prompting.selectors.likelihood import Likelihood
from idp.prompting.selectors.threshold import threshold
from idp.prompting.shapes import prefix_width

from ..conftest import FAMILIES
from .test_fused import FLASH

CONTEXTS = [[3, 40, 41, 42, 43], [4, 50], [5, *range(60, 100)], [7, 70, 71]]


class ByFirstToken(Selector):
    """Prompt `first token mod m`."""

    def scores(self, contexts):
        m = len(self.prefixes.lengths)
        return torch.nn.functional.one_hot(torch.tensor([context[0] % m for context in contexts]), m).float()


def with_empty(bank):
    return PromptBank([*bank.prompts, bank.prompts[0][:0]], [*bank.names, "empty"], bank.kind, beginning=bank.beginning)


def logits_of(repaired, contexts, choice):
    places = [range(len(context)) for context in contexts]
    trunks = [[TRUNK] * len(context) for context in contexts]
    packed = pack(contexts, places, trunks, choice, repaired.prefixes, repaired.model, repaired.device)
    wanted = [packed.starts[row] + place for row, context in enumerate(contexts) for place in range(len(context))]
    with torch.no_grad():
        return torch.cat([part for _, part in repaired.logits_at(packed, torch.tensor(wanted))])


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_behind_it_are_those_without_a_bank(family, open_tiny, make_bank):
    loaded = open_tiny(family)
    repaired = RepairedModel(loaded, with_empty(make_bank(loaded, [5, 9])), ByFirstToken())
    found = logits_of(repaired, CONTEXTS, [2] * 4)
    assert torch.equal(found, logits_of(RepairedModel(loaded), CONTEXTS, None))
    mixed = logits_of(repaired, CONTEXTS, [0, 1, 2, 1])  # one row of the batch follows none
    start = sum(map(len, CONTEXTS[:2]))
    part = slice(start, start + len(CONTEXTS[2]))
    torch.testing.assert_close(mixed[part], found[part], atol=1e-5, rtol=0)
    assert (mixed[:start] - found[:start]).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "opt", "gemma3_text"])
@pytest.mark.parametrize("place", ["before", "after", "none"])
def test_with_a_bos_it_is_the_model_behind_that_alone(family, place, open_tiny, make_bank):
    loaded = open_tiny(family)
    bank = with_empty(make_bank(loaded, [5, 9]))
    bank.beginning = Beginning((11, 12), place)
    repaired = RepairedModel(loaded, bank, ByFirstToken())
    ahead = [11, 12] if place == "before" else []
    assert repaired.prefixes.lengths.tolist() == [5 + len(ahead), 9 + len(ahead), len(ahead)]
    found = logits_of(repaired, CONTEXTS, [2] * 4)
    with torch.no_grad():
        plain = [loaded.model(torch.tensor([ahead + context])).logits[0, len(ahead) :] for context in CONTEXTS]
    torch.testing.assert_close(found, torch.cat(plain), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
def test_text_generated_and_scored_behind_it_is_the_model_s_own(family, open_tiny, make_bank):
    loaded = open_tiny(family)
    plain, repaired = (
        RepairedModel(loaded),
        RepairedModel(loaded, with_empty(make_bank(loaded, [5, 9])), ByFirstToken()),
    )
    expected, _ = decode(plain, CONTEXTS, None, [], 5)
    for choice in ([2, 2, 2, 2], [0, 2, 2, 1]):
        texts, _ = decode(repaired, CONTEXTS, torch.tensor(choice), [], 5)
        assert [texts[row] for row in range(4) if choice[row] == 2] == [
            expected[row] for row in range(4) if choice[row] == 2
        ]
    with torch.no_grad():
        tokens = torch.tensor([[3, 4, 5, 6]])
        one = prefill(repaired, tokens, None, torch.tensor([2])).logits
        torch.testing.assert_close(one, loaded.model(tokens).logits[:, -1], atol=1e-4, rtol=0)
    rows = [make_row([Request(c, [8, 9]), Request(c, [9])], [2 * n, 2 * n + 1], c) for n, c in enumerate(CONTEXTS)]
    for shared in ([], [2, *range(20, 40)]):  # whose first token chooses the empty one for all
        mine = LocalEngine(repaired).score_batch(rows, shared)
        theirs = LocalEngine(plain).score_batch(rows, shared)
        empty = [choice == 2 for choice in mine["choice"] for _ in range(3)]
        assert any(empty) and (all(empty) == bool(shared))
        for value, other, is_empty in zip(mine["values"], theirs["values"], empty, strict=True):
            assert not is_empty or value == pytest.approx(other, abs=1e-4)


def test_a_fused_kernel_takes_rows_with_and_without_a_prompt(open_tiny, make_bank, monkeypatch):
    loaded = open_tiny("llama")
    repaired = RepairedModel(loaded, with_empty(make_bank(loaded, [5, 9])), ByFirstToken())
    choice, calls = [0, 2, 1, 2], []
    expected = logits_of(repaired, CONTEXTS, choice)

    def counted(*given):
        calls.append(given[0].shape[0])
        return FLASH.run(*given)

    monkeypatch.setitem(fused.KERNELS, "cpu", replace(FLASH, run=counted))
    monkeypatch.setattr(fused, "_held", set())
    torch.testing.assert_close(logits_of(repaired, CONTEXTS, choice), expected, atol=1e-4, rtol=0)
    assert set(calls) == {51, 46}, "all tokens see themselves, those of two rows no prompt"


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_stored_bank_holds_nothing_of_it(kind, place, open_tiny, make_bank, tmp_path):
    loaded = open_tiny("llama")
    bank = make_bank(loaded, [5, 9])
    if kind == "prefix":
        wide = prefix_width(loaded.model.config)
        bank = PromptBank([torch.randn(n, wide) for n in (5, 9)], bank.names, kind)
    bank = with_empty(bank)
    bank.beginning = Beginning((11,), place)
    for number, stored in enumerate(
        (None, *(Storage(bits, prune, True, "bfloat16") for bits, prune in ((16, 0.0), (8, 0.0), (4, 0.5))))
    ):
        folder = tmp_path / str(number)
        bank.save(folder, loaded.model.config, "base", stored)
        assert sorted(path.name for path in folder.iterdir()) == ["bank.json", "prompt_0", "prompt_1"]
        again = PromptBank.load(folder)
        assert (again.names, again.lengths) == (bank.names, [5, 9, 0]) and again.parameters == bank.parameters
        assert bind(loaded.model, again).own_lengths.tolist() == [5, 9, 0]


def test_a_bank_of_it_alone_is_refused(open_tiny):
    loaded = open_tiny("llama")
    with pytest.raises(UserError, match="holds the empty prompt alone, which repairs nothing") as caught:
        bind(loaded.model, PromptBank([torch.zeros(0, 64)], ["empty"]))
    assert "\n" not in str(caught.value)


def heldout(count):
    generator = torch.Generator().manual_seed(3)
    contexts = [torch.randint(5, 250, (12,), generator=generator).tolist() for _ in range(count)]
    return contexts, 3.0 + torch.randn(count, 3, generator=generator)


def test_the_threshold_is_the_best_of_all():
    generator = torch.Generator().manual_seed(0)
    for count in (2, 3, 17):
        for trial in range(30):
            scores, losses = torch.randn(count, 2, generator=generator), torch.randn(count, 2, generator=generator)
            scores = scores.mul(2).round() if trial % 2 else scores  # with ties
            without = torch.randn(count, generator=generator) + (trial % 3 - 1)

            def loss(tau, scores=scores, losses=losses, without=without):
                picked = [
                    float(losses[row, int(scores[row].argmax())]) if scores[row].max() > tau else float(without[row])
                    for row in range(len(scores))
                ]
                return sum(picked)

            found = float(threshold(scores, losses, without))
            tried = [-1e9, *(float(value) for value in scores.max(1).values)]
            assert loss(found) == pytest.approx(min(map(loss, tried)), abs=1e-5)


def test_calibrated_attention_leaves_it_above_a_threshold(open_tiny, make_bank):
    loaded = open_tiny("llama")
    bank = make_bank(loaded, [5, 9])
    contexts, losses = heldout(40)
    alone = Attention(calibrated=True)
    alone.bind(loaded.model, bind(loaded.model, bank))
    alone.fit(contexts, losses[:, :2])
    selector = Attention(calibrated=True)
    selector.bind(loaded.model, bind(loaded.model, with_empty(bank)))
    selector.fit(contexts, losses)
    scores = selector.scores(contexts)
    torch.testing.assert_close(scores[:, :2], alone.scores(contexts))
    tau = float(threshold(alone.scores(contexts), losses[:, :2], losses[:, 2]))
    assert scores[:, 2].tolist() == pytest.approx([tau] * 40, abs=1e-4)
    assert set(scores.argmax(1).tolist()) == {0, 1, 2} and (selector.added, alone.added) == (5, 4)
    with pytest.raises(UserError, match="no token that could be attended to"):
        Attention().bind(loaded.model, bind(loaded.model, with_empty(bank)))


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
def test_gain_is_over_the_model_s_own_likelihood(family, open_tiny, make_bank, tmp_path):
    loaded = open_tiny(family)
    bank = make_bank(loaded, [5, 9])
    selector = Gain(0.25)
    selector.bind(loaded.model, bind(loaded.model, with_empty(bank)))
    likelihood = Likelihood()
    likelihood.bind(loaded.model, bind(loaded.model, bank))
    behind, found = likelihood.scores(CONTEXTS), selector.scores(CONTEXTS)
    for row, context in enumerate(CONTEXTS):
        with torch.no_grad():
            logs = loaded.model(torch.tensor([context])).logits[0].log_softmax(-1)
        plain = sum(logs[place, token].item() for place, token in enumerate(context[1:])) / (len(context) - 1)
        expected = [*(behind[row] - plain).tolist(), 0.25]
        assert found[row].tolist() == pytest.approx(expected, abs=1e-4)
    fitted, (contexts, losses) = Gain(), heldout(20)
    fitted.bind(loaded.model, selector.prefixes)
    fitted.fit(contexts, losses)
    tau = threshold(selector.gains(contexts)[:, :2], losses[:, :2], losses[:, 2])
    assert fitted.margin == pytest.approx(float(tau), abs=1e-5) and (fitted.added, selector.added) == (1, 0)
    save_file(fitted.state(), tmp_path / "state.safetensors")
    again = Gain()
    again.bind(loaded.model, selector.prefixes)
    again.restore(load_file(tmp_path / "state.safetensors"))
    assert torch.equal(again.scores(CONTEXTS), fitted.scores(CONTEXTS))
    with pytest.raises(UserError, match="the bank has no empty prompt"):
        Gain().bind(loaded.model, bind(loaded.model, bank))


def test_a_fixed_choice_of_it_is_the_control(open_tiny, make_bank):
    loaded = open_tiny("llama")
    repaired = RepairedModel(loaded, with_empty(make_bank(loaded, [5, 9])), Fixed(2))
    assert repaired.choose(CONTEXTS).tolist() == [2] * 4 and repaired.longest_prompt == 9
