"""The token at the beginning, in scoring: lm-eval's own without a prompt, and at its place behind one."""

import math
import random

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from torch.nn.functional import log_softmax
from transformers import AutoTokenizer

from idp.api import LanguageModel
from idp.beginning import PLACES, Beginning, added_by, resolve
from idp.errors import UserError
from idp.evaluate.perplexity import perplexity, window_losses
from idp.prompting.bank import PromptBank
from idp.prompting.repaired import RepairedModel
from idp.prompting.selectors.likelihood import Likelihood
from idp.prompting.states import embedded

from .test_scorer import agree, instance, multiple_choice, scorer_of, text

BOS = 257


def losses_of(model, rows, skipped, ahead=None):
    """The plain way: summed negative log-likelihood of each row's tokens but the first `skipped`, nats."""
    found = []
    for row in rows:
        given = embedded(model, row)
        given = given if ahead is None else torch.cat([ahead, given])
        start = len(given) - len(row)
        with torch.no_grad():
            logs = log_softmax(model(inputs_embeds=given[None]).logits[0], dim=-1)
        found.append(-sum(float(logs[start + place - 1, row[place]]) for place in range(skipped, len(row))))
    return found


def ahead_of(loaded, prompt, place):
    """What stands before a text's own tokens, as embeddings: [tokens, hidden_size]."""
    bos = embedded(loaded.model, [BOS])
    parts = {"before": [bos, prompt], "after": [prompt, bos], "none": [prompt]}
    return torch.cat(parts[place])


def test_the_tokenizer_is_asked(open_bos, open_tiny):
    adds, has = open_bos().tokenizer, open_bos(adds=False).tokenizer
    assert added_by(adds) == (BOS,) and added_by(has) == ()
    assert [resolve(mode, adds) for mode in ("auto", "always", "never")] == [(BOS,), (BOS,), ()]
    assert [resolve(mode, has) for mode in ("auto", "always", "never")] == [(), (BOS,), ()]
    without = open_tiny("llama").tokenizer
    without.bos_token = None
    with pytest.raises(UserError, match="model.bos=always: the model's tokenizer has no BOS token"):
        resolve("always", without)


@pytest.mark.parametrize(
    ("mode", "adds", "told"),
    [("auto", True, None), ("auto", False, None), ("always", False, True), ("never", True, False)],
)
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_without_a_prompt_it_is_lm_eval_s(open_bos, bos_folders, family, mode, adds, told):
    loaded, rng = open_bos(family, mode, adds), random.Random(3)
    options = {} if told is None else {"add_bos_token": told}
    tokenizer = AutoTokenizer.from_pretrained(bos_folders(family, adds), **options)
    theirs = HFLM(pretrained=loaded.model, tokenizer=tokenizer, batch_size=3, device="cpu", **options)
    requests = multiple_choice(rng, 4)
    requests += [instance("loglikelihood", ("", " the sun"), 90), instance("loglikelihood", ("<s>the", " sun"), 91)]
    scorer = scorer_of(RepairedModel(loaded), 700)
    for request in requests:
        context = request.args[0]
        if context:
            assert scorer.tok_encode(context) == theirs.tok_encode(context)
    agree(scorer.loglikelihood(requests, True), theirs.loglikelihood(requests, True))
    whole = [instance("loglikelihood_rolling", (text(rng, 3, 20),), doc) for doc in range(3)]
    assert scorer.loglikelihood_rolling(whole, True) == pytest.approx(
        theirs.loglikelihood_rolling(whole, True), abs=1e-3
    )
    asks = [
        instance("generate_until", (f"Question: {text(rng, 2, 9)}", {"until": ["\n"], "max_gen_toks": 6}), doc)
        for doc in range(4)
    ]
    assert scorer.generate_until(asks, True) == theirs.generate_until(asks, True)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", ["llama", "opt", "gemma3_text"])
def test_behind_a_prompt_it_stands_where_it_is_told(open_bos, make_bank, family, place, kind):
    from idp.prompting.states import flatten, run_prompt

    loaded = open_bos(family)
    prompt = make_bank(loaded, [5]).prompts[0]
    bank = PromptBank([prompt], ["one"], beginning=Beginning((BOS,), place))
    if kind == "prefix":  # the keys and values of the same prompt, where it stands
        ahead = [BOS] if place == "before" else []
        layers = [(k[:, :, len(ahead) :], v[:, :, len(ahead) :]) for k, v in run_prompt(loaded.model, prompt, ahead)]
        bank = PromptBank([flatten(layers)], ["one"], "prefix", beginning=bank.beginning)
    repaired = RepairedModel(loaded, bank)
    assert repaired.longest_prompt == (6 if place == "before" else 5)
    assert bank.parameters == bank.prompts[0].numel()
    scorer = scorer_of(repaired, 500)
    requests = multiple_choice(random.Random(1), 3)
    found = scorer.loglikelihood(requests, True)
    for request, (value, _) in zip(requests, found, strict=True):
        context, continuation = (list(part.encode()) for part in request.args)
        row = loaded.tokenizer.encode("".join(request.args), add_special_tokens=False)
        assert len(row) == len(context) + len(continuation)
        (wanted,) = losses_of(loaded.model, [row], len(context), ahead_of(loaded, prompt, place))
        assert -value == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("place", [None, *PLACES])
def test_perplexity_counts_the_same_tokens_with_and_without_it(open_bos, make_bank, place):
    loaded = open_bos()
    prompt = make_bank(loaded, [4]).prompts[0]
    bank = None if place is None else PromptBank([prompt], ["one"], beginning=Beginning((BOS,), place))
    windows = torch.randint(1, 250, (3, 24), generator=torch.Generator().manual_seed(0))
    scorer = scorer_of(RepairedModel(loaded, bank), 300)
    ahead = embedded(loaded.model, [BOS]) if place is None else ahead_of(loaded, prompt, place)
    wanted = losses_of(loaded.model, windows.tolist(), 1, ahead)
    assert window_losses(scorer, windows) == pytest.approx([loss / 23 for loss in wanted], abs=1e-5)
    assert perplexity(scorer, windows)["tokens"] == 3 * 23
    never = scorer_of(RepairedModel(open_bos(mode="never")), 300)
    plain = losses_of(loaded.model, windows.tolist(), 1)
    assert window_losses(never, windows) == pytest.approx([loss / 23 for loss in plain], abs=1e-5)


def test_perplexity_of_a_text_does_not_count_it(open_bos, make_bank):
    loaded = open_bos()
    ids = loaded.tokenizer.encode("the sun rises", add_special_tokens=False)
    for written in ("the sun rises", "<s>the sun rises"):
        (found,) = LanguageModel(RepairedModel(loaded), 512).perplexity([written])
        (wanted,) = losses_of(loaded.model, [[BOS, *ids]], 1)
        assert found == pytest.approx(math.exp(wanted / len(ids)), rel=1e-5)
    with pytest.raises(UserError, match="no tokens"):
        LanguageModel(RepairedModel(loaded), 512).perplexity(["<s>"])
    # Behind a prompt that has it before itself, the first token follows the token that ends a document.
    prompt = make_bank(loaded, [4]).prompts[0]
    bank = PromptBank([prompt], ["one"], beginning=Beginning((BOS,), "before"))
    (found,) = LanguageModel(RepairedModel(loaded, bank), 512).perplexity(["the sun rises"])
    (wanted,) = losses_of(loaded.model, [[0, *ids]], 1, ahead_of(loaded, prompt, "before"))
    assert found == pytest.approx(math.exp(wanted / len(ids)), rel=1e-5)


def test_each_window_of_a_long_text_begins_with_it(open_bos):
    loaded = open_bos()
    loaded.model.config.max_position_embeddings = 32
    ids = loaded.tokenizer.encode("the sun rises over a quiet harbour while seven boats", add_special_tokens=False)
    (found,) = LanguageModel(RepairedModel(loaded), 512).perplexity(
        ["the sun rises over a quiet harbour while seven boats"]
    )
    rows, room = [[BOS, *ids[:31]]], 31
    total = losses_of(loaded.model, rows, 1)[0]
    # The last window is moved back to be full: all its tokens but the new ones are context, behind the BOS.
    left = len(ids) - room
    last = [BOS, *ids[-(room + 1) :]]
    last = last[:-1] if len(last) > 33 else last
    total += losses_of(loaded.model, [last], len(last) - left)[0]
    assert found == pytest.approx(math.exp(total / len(ids)), rel=1e-4)


@pytest.mark.parametrize("place", PLACES)
def test_generation_goes_on_behind_it(open_bos, make_bank, place):
    loaded = open_bos()
    prompt = make_bank(loaded, [4]).prompts[0]
    model = LanguageModel(RepairedModel(loaded, PromptBank([prompt], ["a"], beginning=Beginning((BOS,), place))), 256)
    (answer,) = model.generate(["the sun"], max_new_tokens=5)
    given = torch.cat(
        [
            ahead_of(loaded, prompt, place),
            embedded(loaded.model, list(loaded.tokenizer.encode("the sun", add_special_tokens=False))),
        ]
    )
    tokens = []
    for _ in range(5):
        with torch.no_grad():
            tokens.append(int(loaded.model(inputs_embeds=given[None]).logits[0, -1].argmax()))
        if tokens[-1] == 0:
            break
        given = torch.cat([given, embedded(loaded.model, tokens[-1:])])
    assert answer.text == loaded.tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("place", PLACES)
def test_the_likelihood_of_a_text_leaves_it_out(open_bos, make_bank, place):
    loaded = open_bos()
    bank = make_bank(loaded, [4, 6])
    bank.beginning = Beginning((BOS,), place)
    repaired = RepairedModel(loaded, bank, Likelihood())
    row = loaded.tokenizer.encode("seven boats drift", add_special_tokens=False)
    found = repaired.selector.scores([repaired.beginning.ahead_of_text + row])[0]
    for score, prompt in zip(found.tolist(), bank.prompts, strict=True):
        (wanted,) = losses_of(loaded.model, [row], 1, ahead_of(loaded, prompt, place))
        assert score == pytest.approx(-wanted / (len(row) - 1), abs=1e-4)
