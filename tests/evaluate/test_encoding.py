"""Choices that a tokenizer merges into their context, and the tokens at which a generated text ends."""

import logging
import random

import pytest
import torch

from idp.api import LanguageModel
from idp.evaluate import benchmark
from idp.evaluate.engine import LocalEngine
from idp.evaluate.scorer import Scorer
from idp.models import LoadedModel, greedy
from idp.prompting.repaired import RepairedModel

from ..conftest import FAMILIES
from .test_scorer import agree, instance, text


def bpe(merges):
    """A BPE over printable characters, without splitting at spaces: its tokens reach over the border of words."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(["<eos>", "\n", *map(chr, range(32, 127))])}
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def loaded_with(tokenizer):
    from transformers import AutoConfig, AutoModelForCausalLM

    arguments = FAMILIES["llama"] | {"vocab_size": len(tokenizer), "eos_token_id": 0, "pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(arguments.pop("model_type"), **arguments)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return LoadedModel(model, tokenizer)


MERGES = [(":", " "), (": ", "C"), ("a", "t"), (" ", "C")]


@pytest.fixture
def merging():
    return loaded_with(bpe(MERGES))


def alone(loaded, context, continuation):
    """The log-likelihood of tokens behind tokens, the plain way."""
    with torch.no_grad():
        logits = loaded.model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1].log_softmax(-1)
    return logits.gather(1, torch.tensor(continuation)[:, None]).sum().item()


def test_a_choice_that_merges_into_its_context_is_encoded_apart(merging):
    """And the other choices of its document with it: `: ` takes the space of every one of them."""
    scorer = Scorer(LocalEngine(RepairedModel(merging)), 512)
    choices = [" C", " D", " Cat"]
    requests = [instance("loglikelihood", ("Answer:", choice), 0, i) for i, choice in enumerate(choices)]
    encode = merging.tokenizer.encode
    assert len(encode("Answer: C")) == len(encode("Answer:")), "the trap is set"
    found = scorer.loglikelihood(requests, disable_tqdm=True)
    wanted = [alone(merging, encode("Answer:"), encode(choice)) for choice in choices]
    assert [value for value, _ in found] == pytest.approx(wanted, abs=1e-4)
    assert not any(greedy for _, greedy in found) and scorer.merged == 1


def test_where_nothing_merges_tokens_are_lm_evals(merging):
    """Documents apart from the one with the trap, and choices that share a token with the context but keep one."""
    from lm_eval.models.huggingface import HFLM

    rng = random.Random(1)
    requests = [
        instance("loglikelihood", (f"{text(rng, 1, 5)}{end}", choice), doc, i)
        for doc, end in enumerate(["", "?", ":", ": "])
        for i, choice in enumerate([" drift", " boats at sea"])
    ]
    scorer = Scorer(LocalEngine(RepairedModel(merging)), 512)
    found = scorer.loglikelihood(requests, disable_tqdm=True)
    hflm = HFLM(pretrained=merging.model, tokenizer=merging.tokenizer, batch_size=2, device="cpu")
    agree(found, hflm.loglikelihood(requests, disable_tqdm=True))
    assert (scorer.merged, scorer.partly_merged) == (0, 4)


def test_a_tokenizer_that_puts_a_space_ahead_adds_none_to_a_choice():
    from tokenizers import pre_tokenizers

    tokenizer = bpe([("x", "C")])
    plain = tokenizer.encode("C", add_special_tokens=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(" ", prepend_scheme="first", split=False)
    assert len(tokenizer.encode("C", add_special_tokens=False)) == 2
    scorer = Scorer(LocalEngine(RepairedModel(loaded_with(tokenizer))), 512)
    (request,) = scorer.encode_choices([("x", "C")])
    assert request.continuation == plain and scorer.merged == 1


def test_the_python_api_scores_merged_choices_apart_and_says_so(merging, caplog):
    model = LanguageModel(RepairedModel(merging), 512)
    with caplog.at_level(logging.WARNING):
        (scores,) = model.score(["Answer:"], [[" C", " D"]])
    assert scores.tokens == [1, 2] and max(scores.loglikelihoods) < 0 and "no tokens of their own" in caplog.text


def test_an_older_product_with_a_choice_of_0_nats_is_known(tmp_path):
    import pyarrow as arrow
    from pyarrow import parquet

    class Old:
        path, results = tmp_path, {"idp": {"truncated": 0}}

        def read(self, _):
            return self.results

    for values, wanted in [([[-1.0, 0.0], [-2.0]], True), ([[-1.0, -3.0], []], False)]:
        parquet.write_table(arrow.table({"loglikelihoods": values}), tmp_path / benchmark.SAMPLES)
        assert benchmark._gave_a_choice_nothing(Old()) is wanted
    parquet.write_table(arrow.table({"loglikelihoods": [[0.0]]}), tmp_path / benchmark.SAMPLES)
    Old.results = {"idp": {"merged_choices": 0}}
    assert benchmark._gave_a_choice_nothing(Old()) is False


def continued(loaded, prompt, tokens, count):
    """Greedy decoding, the plain way."""
    from ..prompting.test_prefix import plain_logits

    row, prompt = list(tokens), torch.zeros(0, 64) if prompt is None else prompt
    for _ in range(count):
        row.append(int(plain_logits(loaded, prompt, row)[-1].argmax()))
    return row[len(tokens) :]


@pytest.mark.parametrize("prompted", [False, True])
def test_generation_ends_at_each_of_the_models_own_end_tokens(prompted, open_tiny, make_bank):
    loaded = open_tiny("llama")
    bank = make_bank(loaded, [4]) if prompted else None
    contexts = ["a question", "seven boats", "the sun"]
    whole = {
        context: continued(loaded, bank.prompts[0] if bank else None, loaded.tokenizer.encode(context), 12)
        for context in contexts
    }
    end = whole[contexts[0]][4]
    loaded.model.generation_config.eos_token_id = [0, end]
    scorer = Scorer(LocalEngine(RepairedModel(loaded, bank)), 256)
    options = {"until": ["never to be found"], "do_sample": False, "max_gen_toks": 12}
    requests = [instance("generate_until", (context, options), doc) for doc, context in enumerate(contexts)]
    found = scorer.generate_until(requests, disable_tqdm=True)
    answers = LanguageModel(RepairedModel(loaded, bank), 256).generate(contexts, max_new_tokens=12)
    for context, generated, answer in zip(contexts, found, answers, strict=True):
        tokens = whole[context]
        ended = min((tokens.index(each) for each in (0, end) if each in tokens), default=12)
        assert generated == answer.text == loaded.tokenizer.decode(tokens[:ended], skip_special_tokens=True)
    assert len(found[0]) < 12


def test_settings_that_greedy_decoding_does_not_follow_are_named_once(open_tiny, caplog):
    loaded = open_tiny("llama")
    settings = loaded.model.generation_config
    settings.repetition_penalty, settings.no_repeat_ngram_size, settings.temperature = 1.25, 3, 1.0
    options = {"until": ["\n"], "do_sample": False, "max_gen_toks": 2}
    greedy.say_not_followed.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            scorer = Scorer(LocalEngine(RepairedModel(loaded)), 256)
            scorer.generate_until([instance("generate_until", ("a question", options), 0)], disable_tqdm=True)
    (said,) = [record.getMessage() for record in caplog.records if "greedy" in record.getMessage()]
    assert "repetition_penalty=1.25, no_repeat_ngram_size=3 are not followed" in said and "temperature" not in said


def test_end_tokens_are_found_on_disk(model_folders, tmp_path):
    import json
    import shutil

    folder = shutil.copytree(model_folders("llama"), tmp_path / "model")
    assert greedy.ends_beside_eos(folder, False) == []
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 0, 2]}))
    assert greedy.ends_beside_eos(folder, False) == [2, 7]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    assert greedy.ends_beside_eos(folder, False) == [2]
