"""The scorer gives what lm-eval's own HFLM gives on the same model, and with prompts what the plain way gives."""

import random

import pytest
import torch
from lm_eval.api.instance import Instance

from idp.evaluate.batching import Request, common_length, make_row, plan
from idp.evaluate.engine import LocalEngine
from idp.evaluate.perplexity import perplexity
from idp.evaluate.scorer import Scorer
from idp.prompting.attention.group import Group
from idp.prompting.bank import PromptBank
from idp.prompting.repaired import RepairedModel

from ..conftest import FAMILIES
from ..prompting.test_prefix import ByFirstToken, plain_logits

WORDS = ["the", "sun", "rises", "over", "a", "quiet", "harbour", "while", "seven", "boats", "drift", "away"]


def scorer_of(repaired, batch_tokens):
    return Scorer(LocalEngine(repaired), batch_tokens)


def text(rng, low, high):
    return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))


def multiple_choice(rng, documents):
    """Choices of several lengths on one context, and, every third document, contexts that differ (WinoGrande)."""
    requests = []
    for doc in range(documents):
        context = f"Question: {text(rng, 2, 25)}?\nAnswer:"
        continuation = " " + text(rng, 1, 6)
        for choice in range(rng.randint(2, 5)):
            differs = doc % 3 == 2
            pair = (f"{context} {text(rng, 1, 2)}", continuation) if differs else (context, " " + text(rng, 1, 6))
            requests.append(instance("loglikelihood", pair, doc, choice))
    return requests


def instance(kind, arguments, doc_id, idx=0):
    made = Instance(request_type=kind, doc={}, arguments=arguments, idx=idx, metadata=("made_up", doc_id, 1))
    made.task_name, made.doc_id = "made_up", doc_id
    return made


@pytest.fixture
def hflm():
    from lm_eval.models.huggingface import HFLM

    def opened(loaded, batch_size=3):
        return HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size, device="cpu")

    return opened


def agree(found, expected):
    for (value, greedy), (wanted, wanted_greedy) in zip(found, expected, strict=True):
        assert value == pytest.approx(wanted, abs=1e-4)
        assert greedy == wanted_greedy


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_loglikelihoods_equal_hflm(family, seed, open_tiny, hflm):
    loaded, rng = open_tiny(family), random.Random(seed)
    requests = multiple_choice(rng, 12)
    found = scorer_of(RepairedModel(loaded), rng.randint(30, 1500)).loglikelihood(requests, disable_tqdm=True)
    agree(found, hflm(loaded, rng.randint(1, 9)).loglikelihood(requests, disable_tqdm=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_rolling_equals_hflm(family, open_tiny, hflm):
    loaded, rng = open_tiny(family), random.Random(3)
    requests = [instance("loglikelihood_rolling", (text(rng, 1, 60),), doc) for doc in range(5)]
    long = " ".join(text(rng, 30, 30) for _ in range(25))  # longer than the window of 2,048 byte tokens
    requests.append(instance("loglikelihood_rolling", (long,), 5))
    found = scorer_of(RepairedModel(loaded), 1024).loglikelihood_rolling(requests, disable_tqdm=True)
    expected = hflm(loaded).loglikelihood_rolling(requests, disable_tqdm=True)
    assert found == pytest.approx(expected, abs=1e-3, rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_equals_hflm(family, open_tiny, hflm):
    loaded, rng = open_tiny(family), random.Random(5)
    options = {"until": ["\n", "e"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 24}
    requests = [instance("generate_until", (f"Q: {text(rng, 1, 12)}\nA:", options), doc) for doc in range(7)]
    never = {"until": ["a stop string that never comes"], "do_sample": False, "max_gen_toks": 9}
    requests += [instance("generate_until", (text(rng, 1, 12), never), doc) for doc in range(7, 10)]
    found = scorer_of(RepairedModel(loaded), 256).generate_until(requests, disable_tqdm=True)
    assert found == hflm(loaded).generate_until(requests, disable_tqdm=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [11, 12])
def test_with_prompts_equal_to_the_plain_way(family, seed, open_tiny, make_bank):
    loaded, rng = open_tiny(family), random.Random(seed)
    bank = make_bank(loaded, [4, 11, 30])
    scorer = scorer_of(RepairedModel(loaded, bank, ByFirstToken()), rng.randint(30, 1500))
    requests = [
        instance("loglikelihood", (f"{'abcdef'[doc % 6]} {context}", f" {text(rng, 1, 5)}"), doc, choice)
        for doc in range(9)
        for context in [text(rng, 1, 9)]
        for choice in range(3)
    ]
    found = scorer.loglikelihood(requests, disable_tqdm=True)
    for request, (value, greedy) in zip(requests, found, strict=True):
        context, continuation = (scorer.tok_encode(part) for part in request.args)
        prompt = context[0] % 3
        assert scorer.choices["made_up", request.doc_id] == prompt
        logits = plain_logits(loaded, bank.prompts[prompt], (context + continuation)[:-1])
        logits = logits[len(context) - 1 :].log_softmax(-1)
        target = torch.tensor(continuation)
        assert value == pytest.approx(logits.gather(1, target[:, None]).sum().item(), abs=1e-4)
        assert greedy == bool((logits.argmax(-1) == target).all())
    assert len(set(scorer.choices.values())) == 3


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_generation_with_prompts_equals_the_plain_way(family, open_tiny, make_bank):
    loaded = open_tiny(family)
    bank = make_bank(loaded, [4, 11, 30])
    scorer = scorer_of(RepairedModel(loaded, bank, ByFirstToken()), 256)
    options = {"until": ["\n"], "do_sample": False, "max_gen_toks": 12}
    requests = [instance("generate_until", (f"{'abcdef'[doc]} question", options), doc) for doc in range(6)]
    for request, found in zip(requests, scorer.generate_until(requests, disable_tqdm=True), strict=True):
        tokens = scorer.tok_encode(request.args[0])
        prompt, context = bank.prompts[tokens[0] % 3], list(tokens)
        for _ in range(12):
            context.append(int(plain_logits(loaded, prompt, context)[-1].argmax()))
        new = context[len(tokens) :]
        new = new[: new.index(0)] if 0 in new else new
        assert found == loaded.tokenizer.decode(new).split("\n")[0]


def test_scores_do_not_depend_on_the_batch(open_tiny, make_bank):
    loaded = open_tiny("llama")
    requests = multiple_choice(random.Random(17), 20)
    scores = [
        scorer_of(RepairedModel(loaded, make_bank(loaded, [4, 11]), ByFirstToken()), batch_tokens).loglikelihood(
            requests, disable_tqdm=True
        )
        for batch_tokens in (32, 257, 4096)
    ]
    agree(scores[0], scores[1])
    agree(scores[0], scores[2])


def test_the_choice_reads_the_context_alone(open_tiny, make_bank):
    """Other choices of answers, same question: the selector must be shown the same tokens."""
    shown = []

    class Spy(ByFirstToken):
        def scores(self, contexts):
            shown.extend(contexts)
            return super().scores(contexts)

    loaded = open_tiny("llama")
    scorer = scorer_of(RepairedModel(loaded, make_bank(loaded, [4, 11]), Spy()), 512)
    for answers in ([" yes", " no"], [" an answer", " another answer"]):
        scorer.loglikelihood(
            [instance("loglikelihood", ("a question", answer), 0, i) for i, answer in enumerate(answers)],
            disable_tqdm=True,
        )
    assert shown == [scorer.tok_encode("a question")] * 2


def test_edges_of_the_input(open_tiny):
    """Empty parts have defined results, and a context that does not fit is cut on the left and counted."""
    loaded = open_tiny("llama")
    scorer = scorer_of(RepairedModel(loaded), 512)
    long = "x" * 5000
    requests = [
        instance("loglikelihood", ("context", ""), 0),
        instance("loglikelihood", ("", ""), 1),
        instance("loglikelihood", ("", " text"), 2),
        instance("loglikelihood", ("  ", "text"), 3),
        instance("loglikelihood", (long, " yes"), 4),
        instance("loglikelihood", (long, " no"), 4, 1),
        instance("loglikelihood", ("short", long), 5),
    ]
    scores = scorer.loglikelihood(requests, disable_tqdm=True)
    assert scores[0] == scores[1] == (0.0, True)
    assert all(value < 0 for value, _ in scores[2:])
    assert scorer.truncated == 3
    assert scorer.loglikelihood([], disable_tqdm=True) == []
    assert scorer.generate_until([], disable_tqdm=True) == []


def test_truncation_equals_hflm(open_tiny, hflm):
    loaded = open_tiny("gpt2")
    requests = [instance("loglikelihood", ("word " * 300, f" {answer}"), 0, i) for i, answer in enumerate(["a", "bcd"])]
    found = scorer_of(RepairedModel(loaded), 512).loglikelihood(requests, disable_tqdm=True)
    agree(found, hflm(loaded, 1).loglikelihood(requests, disable_tqdm=True))


def test_out_of_memory_halves_the_batch(open_tiny, monkeypatch):
    loaded = open_tiny("llama")
    requests = multiple_choice(random.Random(1), 8)
    expected = scorer_of(RepairedModel(loaded), 4096).loglikelihood(requests, disable_tqdm=True)
    scorer, real = scorer_of(RepairedModel(loaded), 4096), LocalEngine._score

    def limited(self, rows, shared):
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, rows, shared)

    monkeypatch.setattr(LocalEngine, "_score", limited)
    agree(scorer.loglikelihood(requests, disable_tqdm=True), expected)


def test_a_choice_costs_only_its_own_tokens(open_tiny):
    loaded = open_tiny("llama")
    scorer = scorer_of(RepairedModel(loaded), 10_000)
    context = "c" * 500
    scorer.loglikelihood([instance("loglikelihood", (context, " a" * 5), 0, i) for i in range(4)], disable_tqdm=True)
    assert scorer.tokens_run < 1.2 * 500


def test_rows_share_what_is_common():
    requests = [Request([1, 2, 3], [4, 5]), Request([1, 2, 3], [4, 6, 7]), Request([1, 2, 3], [8])]
    row = make_row(requests, [0, 1, 2], [1, 2, 3])
    assert row.tokens == [1, 2, 3, 4, 4, 6]
    assert row.positions == [0, 1, 2, 3, 3, 4]
    assert row.branches == [0, 0, 0, 1, 2, 2]
    assert row.targets == [4, 5, 4, 6, 7, 8] and row.owners == [0, 0, 1, 1, 1, 2]
    assert row.places == [2, 3, 2, 4, 5, 2]
    assert common_length([[1, 2, 3], [1, 2], [1, 2, 4]]) == 2


def test_the_plan_keeps_to_its_budget():
    rng = random.Random(0)
    lengths = [rng.randint(1, 190) for _ in range(50)]
    batches = plan(lengths, 128)
    assert sorted(number for batch in batches for number in batch) == list(range(50))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[number] for number in batch) <= 128


def test_perplexity_counts_the_same_tokens_with_and_without_a_prompt(open_tiny, monkeypatch):
    """A prompt that does nothing leaves the perplexity unchanged; counting its positions would lower it."""
    loaded = open_tiny("llama")
    windows = torch.randint(1, 250, (6, 40), generator=torch.Generator().manual_seed(0))
    plain = perplexity(scorer_of(RepairedModel(loaded), 256), windows)
    assert plain["tokens"] == 6 * 39
    with torch.no_grad():
        logits = loaded.model(windows).logits[:, :-1].log_softmax(-1)
    expected = -logits.gather(2, windows[:, 1:, None]).mean()
    assert plain["nll"] == pytest.approx(expected.item(), abs=1e-5)

    repaired = RepairedModel(loaded, PromptBank([torch.zeros(8, 64)], ["nothing"]))
    mask = Group.mask

    def hides_the_prompt(self, *arguments):
        hidden = mask(self, *arguments).clone()
        hidden[..., : self.prefix_length] = torch.finfo(hidden.dtype).min
        assert self.prefix_length == 8
        return hidden

    # Even keys of zero draw attention; a mask that hides the prompt is what "does nothing" means.
    monkeypatch.setattr(Group, "mask", hides_the_prompt)
    found = perplexity(scorer_of(repaired, 256), windows)
    assert found["tokens"] == plain["tokens"]
    assert found["nll"] == pytest.approx(plain["nll"], abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "opt", "gemma3_text"])
def test_text_that_all_documents_begin_with_runs_once(family, open_tiny, make_bank, hflm):
    """Few-shot examples shared by every document: equal scores, from far fewer tokens, with prompts and without."""
    loaded = open_tiny(family)
    examples = "Question: what floats?\nAnswer: a boat\n\n" * 4
    rng = random.Random(2)
    requests = [
        instance("loglikelihood", (f"{examples}Question: {text(rng, 1, 4)}?\nAnswer:", f" {text(rng, 1, 4)}"), doc, i)
        for doc in range(8)
        for i in range(2)
    ]
    contexts = {doc: requests[2 * doc].args[0] for doc in range(8)}
    requests = [
        instance("loglikelihood", (contexts[request.doc_id], request.args[1]), request.doc_id, request.idx)
        for request in requests
    ]
    scorer = scorer_of(RepairedModel(loaded), 300)
    agree(scorer.loglikelihood(requests, disable_tqdm=True), hflm(loaded).loglikelihood(requests, disable_tqdm=True))
    assert scorer.tokens_run < 8 * len(examples) / 2

    class ByLastToken(ByFirstToken):
        def scores(self, contexts):
            return torch.nn.functional.one_hot(torch.tensor([context[-3] % 3 for context in contexts]), 3).float()

    bank = make_bank(loaded, [4, 11, 30])
    repaired = RepairedModel(loaded, bank, ByLastToken())
    scorer = scorer_of(repaired, 300)
    found = scorer.loglikelihood(requests, disable_tqdm=True)
    for request, (value, _) in zip(requests, found, strict=True):
        context, continuation = (scorer.tok_encode(part) for part in request.args)
        prompt = bank.prompts[scorer.choices["made_up", request.doc_id]]
        logits = plain_logits(loaded, prompt, (context + continuation)[:-1])[len(context) - 1 :].log_softmax(-1)
        assert value == pytest.approx(logits.gather(1, torch.tensor(continuation)[:, None]).sum().item(), abs=1e-4)


@pytest.mark.parametrize("examples", ["", "Question: seven boats?\nAnswer: drift away\n\n" * 3])
def test_a_selector_reads_what_the_cut_choices_still_share(open_tiny, make_bank, examples):
    """Of a document that is cut: the end of the contexts' shared text that every choice has kept, and one prompt."""
    loaded = open_tiny("llama")
    loaded.model.config.max_position_embeddings = 90
    seen = []

    class Spy(ByFirstToken):
        def scores(self, contexts):
            seen.extend(contexts)
            return super().scores(contexts)

    bank = make_bank(loaded, [4, 9])
    long = f"{examples}{'the sun rises over a quiet harbour ' * 4}"
    asked = {
        0: [(f"{long}is it so?", choice) for choice in (" yes", " no, it is not so")],
        1: [(f"{long}while {word} boats", " drift away now") for word in ("seven", "a")],  # as WinoGrande's
        2: [("short?", " yes"), ("short?", " no")],
        3: [(f"{long}is it so?", choice) for choice in (" yes", " no" * 40)],  # nothing of the context is left
    }
    requests = [instance("loglikelihood", pair, doc, i) for doc, own in asked.items() for i, pair in enumerate(own)]
    selector = Spy()
    scorer = scorer_of(RepairedModel(loaded, bank, selector), 4000)
    assert scorer.max_length == 81
    found = scorer.loglikelihood(requests, disable_tqdm=True)
    reads = {loaded.tokenizer.decode(row) for row in seen}
    room = 81 + 1
    assert reads == {
        f"{long}is it so?"[-(room - len(" no, it is not so")) :],
        # The choice with the longer context has lost most; both have kept this of what they share.
        f"{long}while "[len(f"{long}while seven boats") - (room - len(" drift away now")) :],
        "short?",
        "?",
    }
    for doc, own in asked.items():
        prompts = {scorer.choices["made_up", doc]}
        assert len(prompts) == 1
        prompt = bank.prompts[prompts.pop()]
        for pair, (value, _) in zip(own, found[2 * doc : 2 * doc + 2], strict=True):
            context, continuation = (scorer.tok_encode(part) for part in pair)
            count = min(len(continuation), 81)
            tokens = (context[-1:] if count == 81 else context) + continuation[-81:]
            tokens = tokens[-room:]
            logits = plain_logits(loaded, prompt, tokens[:-1])[-count:].log_softmax(-1)
            wanted = logits.gather(1, torch.tensor(tokens[-count:])[:, None]).sum().item()
            assert value == pytest.approx(wanted, abs=1e-3)


def test_an_attention_selector_reads_a_cut_document(open_tiny, make_bank):
    from idp.prompting.selectors.attention import Attention

    loaded = open_tiny("llama")
    loaded.model.config.max_position_embeddings = 64
    bank = make_bank(loaded, [4, 9, 7])
    repaired = RepairedModel(loaded, bank, Attention())
    scorer = scorer_of(repaired, 4000)
    contexts = [f"{text(random.Random(doc), 30, 40)} is it so?" for doc in range(8)]
    requests = [
        instance("loglikelihood", (context, choice), doc, i)
        for doc, context in enumerate(contexts)
        for i, choice in enumerate((" yes", " no, it is not so"))
    ]
    scorer.loglikelihood(requests, disable_tqdm=True)
    room = scorer.max_length + 1 - len(" no, it is not so")
    wanted = repaired.choose([scorer.tok_encode(context)[-room:] for context in contexts]).tolist()
    assert [scorer.choices["made_up", doc] for doc in range(8)] == wanted
    assert len(set(wanted)) > 1


class Killed(Exception):
    pass


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until"])
def test_a_killed_task_goes_on_with_the_batches_that_are_left(kind, open_tiny, monkeypatch, tmp_path):
    from idp.evaluate.journal import Journal

    loaded = open_tiny("llama")
    if kind == "loglikelihood":
        requests, name = multiple_choice(random.Random(23), 20), "score_batch"
    else:
        options = {"until": ["\n"], "do_sample": False, "max_gen_toks": 6}
        requests = [instance(kind, (text(random.Random(doc), 1, 9), options), doc) for doc in range(20)]
        name = "generate_batch"
    expected = getattr(scorer_of(RepairedModel(loaded), 100), kind)(requests, disable_tqdm=True)

    calls, real = [], getattr(LocalEngine, name)

    def counted(self, batch, *rest):
        if len(calls) == limit:
            raise Killed
        calls.append(batch)
        return real(self, batch, *rest)

    monkeypatch.setattr(LocalEngine, name, counted)
    for limit in (2, 3, 1000):
        scorer = scorer_of(RepairedModel(loaded), 100)
        scorer.journal = Journal(tmp_path)
        if limit < 1000:
            with pytest.raises(Killed):
                getattr(scorer, kind)(requests, disable_tqdm=True)
        else:
            found = getattr(scorer, kind)(requests, disable_tqdm=True)
        (page,) = tmp_path.iterdir()
        page.write_bytes(page.read_bytes() + b'[99, {"values": [')  # a line that a kill cut off
    assert found == expected
    assert len({str(batch) for batch in calls}) == len(calls), "a finished batch was scored again"


def test_a_journal_of_other_requests_is_not_read(open_tiny, tmp_path):
    from idp.evaluate.journal import Journal

    loaded = open_tiny("llama")
    for seed in (1, 2):
        requests = multiple_choice(random.Random(seed), 6)
        scorer = scorer_of(RepairedModel(loaded), 200)
        scorer.journal = Journal(tmp_path)
        found = scorer.loglikelihood(requests, disable_tqdm=True)
        agree(found, scorer_of(RepairedModel(loaded), 200).loglikelihood(requests, disable_tqdm=True))


def test_a_changed_line_of_a_journal_does_not_count(tmp_path):
    from idp.evaluate.journal import Journal

    page = Journal(tmp_path).open("plan")
    for number in range(3):
        page.add(number, {"values": [-1.25]})
    content = page.path.read_bytes()
    page.path.write_bytes(content.replace(b"-1.25", b"-1.26").replace(b"-1.26", b"-1.25", 1))  # in all but the first
    again = Journal(tmp_path).open("plan")
    assert again.finished == {0: {"values": [-1.25]}}
    again.add(1, {"values": [-1.25]})
    assert list(Journal(tmp_path).open("plan").finished) == [0, 1]
