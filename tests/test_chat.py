"""Conversations, drawn tokens, streams: what comes of them, held to plain computations and to PEFT."""

import pytest
import torch

from idp.api import LanguageModel
from idp.errors import UserError
from idp.evaluate.sampling import Sampling, drawn
from idp.models import LoadedModel
from idp.prompting.bank import PromptBank
from idp.prompting.repaired import RepairedModel

from .prompting.test_prefix import ByFirstToken

TEMPLATE = (
    "{% for each in messages %}<{{ each['role'] }}>{{ each['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEXTS = ["a", "Water boils at a temperature of one hundred degrees", "two words", "and a third of some length"]
HOT = {"temperature": 1.3, "top_k": 40, "top_p": 0.95, "seed": 3}


@pytest.fixture
def model(open_tiny, make_bank):
    """A model with three prompts, of which the first token of an input picks one."""
    loaded = open_tiny("llama")
    return LanguageModel(RepairedModel(loaded, make_bank(loaded, [4, 11, 30]), ByFirstToken()), 128, name="mine")


def test_conversations_are_put_by_the_template(model):
    with pytest.raises(UserError, match="mine: its tokenizer has no chat template; ask without one"):
        model.chat("Why?")
    model.tokenizer.chat_template = TEMPLATE
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "?"}]
    assert model.has_chat and model.in_chat(["Why?", talk]) == [
        "<user>Why?<assistant>",
        "<user>Hi<assistant>Ho<user>?<assistant>",
    ]
    one, several = model.chat(talk, max_new_tokens=5), model.chat([talk, talk[:1]], max_new_tokens=5)
    assert one == several[0] == model.generate(["<user>Hi<assistant>Ho<user>?<assistant>"], 5)[0]
    assert model.chat("Hi", max_new_tokens=5) == several[1]
    assert model.chat("Hi", max_new_tokens=9, **HOT) == model.generate(["<user>Hi<assistant>"], 9, **HOT)[0]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "questions is empty: give at least one"),
        ([[]], r"questions\[0\] is empty: give messages"),
        (7, "questions: give a list, not 7"),
        ([{"role": "user"}], r"questions\[0\]\[0\]: a message is"),
        ([{"role": "bot", "content": "x"}], r"role=bot: use system, user, assistant"),
        ([{"role": "user", "content": 3}], r"questions\[0\]\[0\].content is not a text: 3"),
        ([{"role": "assistant", "content": "x"}], "its last message is the model's own"),
        (
            [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}],
            "template refuses this .*: No",
        ),
    ],
)
def test_what_is_no_conversation(messages, message, model):
    model.tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No.') }}{% endif %}"
    with pytest.raises(UserError, match=message):
        model.chat(messages)


@pytest.mark.parametrize("options", [{}, HOT], ids=["greedy", "drawn"])
def test_a_stream_is_the_answer_in_pieces(options, model):
    asked = [f"{letter} and so" for letter in "abcdefghij"]
    answers = model.generate(asked, 24, **options)
    for text in asked:
        (answer,) = model.generate([text], 24, **options)
        assert "".join(model.stream(text, 24, **options)) == answer.text
    text = max(zip(asked, answers, strict=True), key=lambda pair: len(set(pair[1].text)))[0]
    whole = model.generate([text], 24, **options)[0].text
    assert len(list(model.stream(text, 24, **options))) > 2
    stop = whole[4:6]
    cut = "".join(model.stream(text, 24, stop, **options))
    assert cut == whole.split(stop)[0] == model.generate([text], 24, stop, **options)[0].text
    for piece in model.stream(text, 3, **options):  # whoever takes it may train meanwhile
        assert not torch.is_inference_mode_enabled(), piece


def test_each_text_has_draws_of_its_own_whatever_is_beside_it(model):
    together = model.generate(TEXTS, 12, **HOT)
    assert together == model.generate(TEXTS, 12, **HOT) != model.generate(TEXTS, 12, **{**HOT, "seed": 4})
    wide = LanguageModel(model._engine.repaired, 4096)
    assert together == wide.generate(TEXTS, 12, **HOT)  # in other batches
    assert together[0] == model.generate(TEXTS[:1], 12, **HOT)[0]
    assert [answer.prompt for answer in together] == model.choose(TEXTS)
    same = model.generate(["a"] * 4, 12, **HOT)
    assert len({answer.text for answer in same}) > 1
    assert model.generate(TEXTS, 12, temperature=1e-4) == model.generate(TEXTS, 12)
    assert model.generate(TEXTS, 12, temperature=2.0, top_k=1) == model.generate(TEXTS, 12)


@pytest.mark.parametrize("sampling", [Sampling(0.7), Sampling(1.3, 5), Sampling(1.0, 0, 0.6), Sampling(1.5, 6, 0.8)])
def test_tokens_are_drawn_as_transformers_would_weigh_them(sampling):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(5)) * 2
    scores = TemperatureLogitsWarper(sampling.temperature)(None, logits.double())
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    expected = scores.softmax(dim=-1)[0]
    uniform = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    found = torch.bincount(drawn(logits.expand(100_000, -1), uniform, sampling), minlength=12) / 100_000
    assert found == pytest.approx(expected, abs=2e-5) and ((found > 0) == (expected > 0)).all()


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_left_padded_batch_answers_as_each_row_alone_and_as_peft_does_alone(dtype, open_tiny):
    """PEFT drops position ids, so that in its own batches padding parts the prompt from the shorter texts: see
    docs/export.md."""
    from peft import PromptTuningConfig, get_peft_model

    loaded = open_tiny("llama")
    model, tokenizer = loaded.model.to(dtype), loaded.tokenizer
    prompt = model.get_input_embeddings().weight[10:16].clone()
    ours = LanguageModel(RepairedModel(LoadedModel(model, tokenizer), PromptBank([prompt], ["prompt"])), 4096)
    together = [answer.text for answer in ours.generate(TEXTS, 12)]
    assert together == [ours.generate([text], 12)[0].text for text in TEXTS]

    theirs = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)).to(dtype).eval()
    tokenizer.padding_side = "left"
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(prompt)

    def answers(texts):
        given = tokenizer(texts, return_tensors="pt", padding=True)
        rows = theirs.generate(
            input_ids=given["input_ids"], attention_mask=given["attention_mask"], max_new_tokens=12, do_sample=False
        )
        return [tokenizer.decode(row[given["input_ids"].shape[1] :], skip_special_tokens=True) for row in rows]

    alone = [answers([text])[0] for text in TEXTS]
    assert alone == together
    batch = answers(TEXTS)
    longest = max(range(len(TEXTS)), key=lambda number: len(TEXTS[number]))
    assert batch[longest] == together[longest]
    assert batch != together, "PEFT now keeps positions in padded batches: docs/export.md may say so"


def test_the_model_its_tokenizer_and_its_prompts_are_at_hand(model):
    assert model.model.get_input_embeddings().weight.shape[1] == 64 and model.tokenizer.encode("a")
    assert [len(prompt) for prompt in model.bank.prompts] == [4, 11, 30] and model.bank.names == model.prompts
    (answer,) = model.generate(["b and so"], 3)
    assert len(model.bank.prompts[model.prompts.index(answer.prompt)]) in (4, 11, 30)
