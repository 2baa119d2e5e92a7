"""Every selector against a plain, slow reference, and each that is fitted through files and back."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from idp.errors import UserError
from idp.prompting.embedding import mean_embeddings
from idp.prompting.prefix import bind
from idp.prompting.selectors.attention import Attention, AttentionSelector
from idp.prompting.selectors.confidence import Confidence
from idp.prompting.selectors.fixed import Fixed, FixedSelector
from idp.prompting.selectors.learned import Learned, LearnedSelector
from idp.prompting.selectors.likelihood import Likelihood, LikelihoodSelector
from idp.prompting.selectors.nearest import Nearest, NearestSelector
from idp.prompting.selectors.oracle import OracleSelector
from idp.prompting.selectors.random import Random, RandomSelector

CONTEXTS = [[3, 40, 41, 42, 43], [4, 50], [5, *range(60, 90)], [7], [8, 9, 10, 11, 12, 13]]
LENGTHS = [4, 9, 6]


def bound(selector, loaded, bank):
    selector.bind(loaded.model, bind(loaded.model, bank))
    return selector


def kinds_of_text(count):
    """Contexts of two kinds, of other tokens each; by their losses prompt 0 suits the one kind, prompt 2 the other."""
    generator = torch.Generator().manual_seed(1)
    contexts, losses = [], torch.full((count, 3), 3.0)
    for number in range(count):
        low = 10 if number % 2 else 130
        contexts.append(torch.randint(low, low + 100, (12,), generator=generator).tolist())
        losses[number, 0 if number % 2 else 2] = 2.5
    return contexts, losses + 0.01 * torch.randn(count, 3, generator=generator)


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2", "qwen2"])
def test_likelihood_is_that_of_a_plain_pass_behind_each_prompt(family, open_tiny, make_bank):
    loaded = open_tiny(family)
    bank = make_bank(loaded, LENGTHS)
    found = bound(Likelihood(), loaded, bank).scores(CONTEXTS)
    embed = loaded.model.get_input_embeddings()
    for row, context in enumerate(CONTEXTS):
        for number, prompt in enumerate(bank.prompts):
            whole = torch.cat([prompt[None], embed(torch.tensor([context]))], dim=1)
            with torch.no_grad():
                log_p = loaded.model(inputs_embeds=whole).logits[0, len(prompt) :].log_softmax(-1)
            values = [log_p[place, token].item() for place, token in enumerate(context[1:])]
            assert found[row, number].item() == pytest.approx(sum(values) / max(len(values), 1), abs=1e-4)


def test_likelihood_of_many_texts_is_that_of_each(open_tiny, make_bank, monkeypatch):
    loaded = open_tiny("llama")
    selector = bound(Likelihood(), loaded, make_bank(loaded, LENGTHS))
    whole = selector.scores(CONTEXTS)
    monkeypatch.setattr("idp.prompting.selectors.likelihood.TOGETHER", 40)
    torch.testing.assert_close(selector.scores(CONTEXTS), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
@pytest.mark.parametrize("tokens", [1, 4])
def test_confidence_is_the_negative_entropy_of_what_comes_next(family, tokens, open_tiny, make_bank, monkeypatch):
    loaded = open_tiny(family)
    bank = make_bank(loaded, LENGTHS)
    selector = bound(Confidence(tokens), loaded, bank)
    found = selector.scores(CONTEXTS)
    embed = loaded.model.get_input_embeddings()
    for row, context in enumerate(CONTEXTS):
        for number, prompt in enumerate(bank.prompts):
            whole = torch.cat([prompt[None], embed(torch.tensor([context]))], dim=1)
            with torch.no_grad():
                p = loaded.model(inputs_embeds=whole).logits[0, len(prompt) :].softmax(-1)[-tokens:]
            entropies = [-sum(x * math.log(x) for x in place.tolist()) for place in p]
            assert found[row, number].item() == pytest.approx(-sum(entropies) / len(entropies), abs=1e-4)
    monkeypatch.setattr("idp.prompting.selectors.likelihood.TOGETHER", 40)
    torch.testing.assert_close(selector.scores(CONTEXTS), found, atol=1e-5, rtol=0)
    assert found.std() > 1e-4


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_text_s_embedding_is_the_mean_of_its_tokens(family, open_tiny):
    model = open_tiny(family).model
    found = mean_embeddings(model, CONTEXTS)
    for row, context in enumerate(CONTEXTS):
        plain = sum(model.get_input_embeddings()(torch.tensor(token)) for token in context) / len(context)
        torch.testing.assert_close(found[row], plain, atol=1e-6, rtol=1e-5)
        assert torch.equal(mean_embeddings(model, [context])[0], found[row])


def test_calibrated_attention_is_standardised_by_held_out_text(open_tiny, make_bank):
    loaded = open_tiny("llama")
    bank = make_bank(loaded, LENGTHS)
    contexts, losses = kinds_of_text(70)
    raw = bound(Attention(reduce="sum"), loaded, bank)
    selector = bound(Attention(reduce="sum", calibrated=True), loaded, bank)
    selector.fit(contexts, losses)
    heldout = np.array([raw.scores([context])[0].tolist() for context in contexts])
    for row, context in enumerate(CONTEXTS):
        for prompt, score in enumerate(raw.scores([context])[0].tolist()):
            mean = sum(heldout[:, prompt]) / 70
            deviation = math.sqrt(sum((value - mean) ** 2 for value in heldout[:, prompt]) / 69)
            expected = (score - mean) / deviation
            assert selector.scores(CONTEXTS)[row, prompt].item() == pytest.approx(expected, abs=2e-3)
    assert set(raw.scores(contexts).argmax(1).tolist()) == {1}, "the raw sum favours the longest"
    assert set(selector.scores(contexts).argmax(1).tolist()) == {0, 1, 2}
    assert (selector.added, raw.added) == (6, 0)


def test_nearest_is_the_nearest_of_the_mean_embeddings(open_tiny, make_bank):
    loaded = open_tiny("llama")
    selector = bound(Nearest(), loaded, make_bank(loaded, LENGTHS))
    contexts, losses = kinds_of_text(40)
    selector.fit(contexts, losses)
    embed = loaded.model.get_input_embeddings().weight
    mean = [embed[torch.tensor(context)].mean(0) for context in contexts]
    centres = {}
    for prompt in (0, 2):
        mine = [vector for vector, loss in zip(mean, losses, strict=True) if int(loss.argmin()) == prompt]
        centres[prompt] = sum(mine) / len(mine)
    found = selector.scores(CONTEXTS)
    for row, context in enumerate(CONTEXTS):
        vector = embed[torch.tensor(context)].mean(0)
        for prompt, centre in centres.items():
            assert found[row, prompt].item() == pytest.approx(-((vector - centre) ** 2).sum().item(), rel=1e-4)
        assert found[row, 1] == -torch.inf, "it was best on no block, so it is chosen for none"
    assert selector.scores(contexts).argmax(1).tolist() == losses.argmin(1).tolist()
    assert (selector.added, selector.trainable) == (3 * 64, 0)


@pytest.mark.parametrize("objective", ["expected", "best"])
def test_the_router_is_where_plain_gradient_descent_ends(objective, open_tiny, make_bank):
    loaded = open_tiny("llama")
    selector = bound(Learned(objective, penalty=0.1), loaded, make_bank(loaded, LENGTHS))
    contexts, losses = kinds_of_text(40)
    with torch.inference_mode():  # as scoring runs it
        selector.fit(contexts, losses)

    embedded = mean_embeddings(loaded.model, contexts).double().numpy()
    scale = embedded.std(0, ddof=1) * math.sqrt(64)
    features, loss = (embedded - embedded.mean(0)) / scale, losses.double().numpy()
    relative = loss - loss.mean(1, keepdims=True)
    relative /= relative.std(ddof=1)
    best = np.eye(3)[loss.argmin(1)]
    weight, bias = np.zeros((3, 64)), np.zeros(3)
    for _ in range(4000):
        p = np.exp(features @ weight.T + bias)
        p /= p.sum(1, keepdims=True)
        slope = p * (relative - (p * relative).sum(1, keepdims=True)) if objective == "expected" else p - best
        weight -= 1.0 * (slope.T @ features / 40 + 0.1 * weight)
        bias -= 1.0 * (slope.mean(0) + 0.1 * bias)
    expected = features @ weight.T + bias
    np.testing.assert_allclose(selector.scores(contexts).numpy(), expected, atol=1e-4)
    assert (selector.scores(contexts).argmax(1) == losses.argmin(1)).float().mean() > 0.9
    assert selector.added == selector.trainable == 3 * 64 + 3


def test_random_choice_is_the_input_s_and_the_seed_s_alone(open_tiny, make_bank):
    loaded = open_tiny("llama")
    bank = make_bank(loaded, LENGTHS)
    contexts, _ = kinds_of_text(300)
    chosen = bound(Random(0), loaded, bank).scores(contexts).argmax(1)
    one_by_one = torch.cat([bound(Random(0), loaded, bank).scores([context]).argmax(1) for context in contexts])
    backwards = bound(Random(0), loaded, bank).scores(contexts[::-1]).argmax(1).flip(0)
    assert torch.equal(chosen, one_by_one) and torch.equal(chosen, backwards)
    other = bound(Random(1), loaded, bank).scores(contexts).argmax(1)
    assert 0.2 < (chosen == other).float().mean() < 0.47
    assert all(70 < count < 130 for count in chosen.bincount(minlength=3).tolist())


@pytest.mark.parametrize(("prompt", "expected"), [("best", 2), ("worst", 1), (0, 0)])
def test_fixed_takes_one_prompt(prompt, expected, open_tiny, make_bank):
    loaded = open_tiny("llama")
    selector = bound(Fixed(prompt), loaded, make_bank(loaded, LENGTHS))
    selector.fit(CONTEXTS[:2], torch.tensor([[1.0, 3.0, 1.5], [2.0, 2.0, 1.0]]))
    assert selector.scores(CONTEXTS).argmax(1).tolist() == [expected] * len(CONTEXTS)
    with pytest.raises(UserError, match="prompts 0 to 2"):
        bound(Fixed(3), loaded, make_bank(loaded, LENGTHS))


@pytest.mark.parametrize(
    "options",
    [
        AttentionSelector("attention", 0, "post", "mean", None, True),
        FixedSelector("fixed", "worst"),
        NearestSelector("nearest"),
        LearnedSelector("learned", "expected", 0.01),
    ],
    ids=lambda options: options.kind,
)
def test_a_fit_survives_files(options, open_tiny, make_bank, tmp_path):
    loaded = open_tiny("llama")
    bank = make_bank(loaded, LENGTHS)
    contexts, losses = kinds_of_text(20)
    assert options.fits
    selector = bound(options.build(), loaded, bank)
    selector.fit(contexts, losses)
    save_file(selector.state(), tmp_path / "selector.safetensors")
    again = bound(options.build(), loaded, bank)
    again.restore(load_file(tmp_path / "selector.safetensors"))
    assert torch.equal(again.scores(CONTEXTS), selector.scores(CONTEXTS))
    assert (again.added, again.trainable) == (selector.added, selector.trainable)


def test_what_needs_no_fit_and_what_cannot_choose():
    for options in (
        AttentionSelector("attention", 0, "post", "mean", None, False),
        RandomSelector("random", 0),
        FixedSelector("fixed", 1),
        LikelihoodSelector("likelihood"),
    ):
        assert not options.fits and options.build().state() in ({}, {"prompt": 1})
    with pytest.raises(UserError, match="oracle chooses with the answers in hand"):
        OracleSelector("oracle").build()
