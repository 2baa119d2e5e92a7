"""A mixture of prompts: the mean of their keys and values, in scoring, generation and perplexity alike."""

import pytest
import torch

from idp.beginning import Beginning
from idp.errors import UserError
from idp.evaluate.batching import Request, make_row
from idp.evaluate.engine import LocalEngine
from idp.evaluate.generation import decode, prefill
from idp.prompting.bank import PromptBank
from idp.prompting.caches import cache_of
from idp.prompting.prefix import bind
from idp.prompting.repaired import RepairedModel
from idp.prompting.selectors.base import Selector
from idp.prompting.selectors.nearest import Nearest
from idp.prompting.states import run_prompt

CONTEXTS = [[3, 40, 41, 42, 43], [4, 50], [5, *range(60, 100)], [7, 70, 71]]
SHARED = [2, *range(20, 40)]


class Scored(Selector):
    """The score of prompt i: (sum of the context's tokens) * i mod 7, a tenth of it."""

    def __init__(self, temperature=None):
        self.temperature = temperature

    def scores(self, contexts):
        m = len(self.prefixes.lengths)
        return torch.tensor([[(sum(context) * (i + 1)) % 7 / 10 for i in range(m)] for context in contexts])


class OneHot(Scored):
    """All weight to one prompt: as far from the others as float32 has it."""

    def scores(self, contexts):
        return super().scores(contexts).argmax(1, keepdim=True).eq(torch.arange(len(self.prefixes.lengths))) * 1e6


def weights_of(context, m, temperature):
    return torch.tensor([(sum(context) * (i + 1)) % 7 / 10 / temperature for i in range(m)]).softmax(0)


def plain_logits(loaded, bank, weights, context):
    """The model's own pass behind the mean of the prompts' caches."""
    ahead = bank.beginning.ahead_of_prompt if bank.beginning else []
    runs = [run_prompt(loaded.model, prompt, ahead) for prompt in bank.prompts]
    layers = [
        tuple(sum(w * run[layer][part] for w, run in zip(weights.tolist(), runs, strict=True)) for part in (0, 1))
        for layer in range(len(runs[0]))
    ]
    n, width = layers[0][0].shape[2], len(context)
    with torch.no_grad():
        return loaded.model(
            input_ids=torch.tensor([context]),
            position_ids=torch.arange(n, n + width)[None],
            past_key_values=cache_of(layers),
        ).logits[0]


def scored(repaired, shared):
    rows = [make_row([Request(c, [8, 9]), Request(c, [9])], [2 * n, 2 * n + 1], c) for n, c in enumerate(CONTEXTS)]
    return LocalEngine(repaired).score_batch(rows, shared)


@pytest.mark.parametrize("family", ["llama", "opt", "qwen3"])
@pytest.mark.parametrize("place", ["after", "before"])
def test_rows_follow_the_weighted_mean_of_keys_and_values(family, place, open_tiny, make_bank):
    loaded = open_tiny(family)
    bank = make_bank(loaded, [6, 6, 6])
    bank.beginning = Beginning((11,), place)
    repaired = RepairedModel(loaded, bank, Scored(0.2))
    for shared in ([], SHARED):
        found, place_of = scored(repaired, shared), 0
        assert found["choice"] == [int(weights_of(shared + c, 3, 0.2).argmax()) for c in CONTEXTS]
        for context in CONTEXTS:
            weights = weights_of(shared + context, 3, 0.2)
            logs = plain_logits(loaded, bank, weights, [*shared, *context, 8]).log_softmax(-1)
            end = len(shared) + len(context) - 1
            expected = [logs[end, 8].item(), logs[end + 1, 9].item(), logs[end, 9].item()]
            assert found["values"][place_of : place_of + 3] == pytest.approx(expected, abs=1e-4)
            place_of += 3
    texts, _ = decode(repaired, CONTEXTS, repaired.choose(CONTEXTS), [], 4)
    for context, text in zip(CONTEXTS, texts, strict=True):
        whole = list(context)
        for _ in range(4):
            logits = plain_logits(loaded, bank, weights_of(context, 3, 0.2), whole)
            whole.append(int(logits[-1].argmax()))
        assert text == loaded.tokenizer.decode(whole[len(context) :], skip_special_tokens=True)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_all_weight_on_one_prompt_is_that_prompt_exactly(family, open_tiny, make_bank):
    loaded = open_tiny(family)
    bank = make_bank(loaded, [6, 6, 6])
    hard, mixed = RepairedModel(loaded, bank, OneHot()), RepairedModel(loaded, bank, OneHot(1.0))
    choice, weights = hard.choose(CONTEXTS), mixed.choose(CONTEXTS)
    assert torch.equal(weights, torch.nn.functional.one_hot(choice, 3).float()) and len(set(choice.tolist())) > 1
    prefixes, rows = mixed.followed(weights)
    for one, other in zip(prefixes.keys + prefixes.values, hard.prefixes.keys + hard.prefixes.values, strict=True):
        assert torch.equal(one[rows], other[choice])
    tokens, real = torch.tensor([[0, 3, 4], [5, 6, 7], [8, 9, 1], [0, 0, 2]]), torch.ones(4, 3, dtype=torch.bool)
    real[0, 0] = real[3, 0] = real[3, 1] = False
    with torch.inference_mode():
        one, other = prefill(hard, tokens, real, choice), prefill(mixed, tokens, real, weights)
    assert torch.equal(one.logits, other.logits)
    expected, found = scored(hard, []), scored(mixed, [])
    assert found["choice"] == expected["choice"] and found["values"] == expected["values"]


def test_equal_prompts_mixed_are_one_prompt(open_tiny, make_bank):
    loaded = open_tiny("llama")
    (prompt,) = make_bank(loaded, [6]).prompts
    one = RepairedModel(loaded, PromptBank([prompt], ["one"]))
    same = RepairedModel(loaded, PromptBank([prompt] * 3, ["a", "b", "c"]), Scored(0.5))
    assert scored(same, SHARED)["values"] == pytest.approx(scored(one, SHARED)["values"], abs=1e-4)
    assert decode(same, CONTEXTS, same.choose(CONTEXTS), [], 5) == decode(one, CONTEXTS, one.choose(CONTEXTS), [], 5)


def test_weights_by_nearness_are_in_units_of_the_centres(open_tiny, make_bank):
    loaded = open_tiny("llama")
    selector = Nearest()
    selector.temperature = 0.5
    centres = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)) / 20
    selector.restore({"centres": centres})
    found = RepairedModel(loaded, make_bank(loaded, [6, 6, 6]), selector).choose(CONTEXTS)
    pairs = [float((centres[i] - centres[j]).square().sum()) for i, j in ((0, 1), (0, 2), (1, 2))]
    for row, context in enumerate(CONTEXTS):
        mean = loaded.model.get_input_embeddings().weight[torch.tensor(context)].mean(0)
        logits = torch.stack([-(mean - centre).square().sum() for centre in centres]) / (0.5 * sum(pairs) / 3)
        torch.testing.assert_close(found[row], logits.softmax(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lengths", [[5, 6], [5, 0]])
def test_prompts_of_several_lengths_are_not_mixed(lengths, open_tiny, make_bank):
    loaded = open_tiny("llama")
    bank = make_bank(loaded, [5, 6])
    if 0 in lengths:
        bank = PromptBank([bank.prompts[0], bank.prompts[0][:0]], ["a", "empty"])
    with pytest.raises(UserError, match=f"prompts of 5, {lengths[1]} tokens cannot be mixed"):
        RepairedModel(loaded, bank, Scored(1.0))
    with pytest.raises(UserError, match="cannot be mixed"):
        bind(loaded.model, bank).mixed(torch.tensor([[0.5, 0.5]]))
