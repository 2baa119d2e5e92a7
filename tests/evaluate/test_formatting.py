"""Documents that cannot be formatted or scored are refused where they are found, with their file and line."""

import json

import pytest

from idp import hub
from idp.config import Task
from idp.errors import UserError
from idp.tasks.tasks import find_tasks


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: False)


@pytest.fixture
def found(tmp_path):
    """`found(task, documents=None, fewshot=None, **splits)`: what `find_tasks` finds of documents in a folder."""

    def find(name, documents=None, fewshot=None, **splits):
        for split, rows in splits.items():
            file = tmp_path / name / f"{split}.jsonl"
            file.parent.mkdir(exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n\n" for row in rows))  # every other line is empty
        return find_tasks(Task([name], str(tmp_path), fewshot, documents))[0]

    return find


def arc(number, **changed):
    choices = {"text": [f"{number}a", f"{number}b", f"{number}c"], "label": ["A", "B", "C"]}
    row = {"id": f"{number}", "question": f"What is {number}?", "choices": choices, "answerKey": "ABC"[number % 3]}
    return row | changed


def offered(*texts, answer="A"):
    return {"choices": {"text": list(texts), "label": list("ABC")[: len(texts)]}, "answerKey": answer}


def boolq(number, label=1):
    return {"question": f"is it {number}", "passage": f"it is {number}", "idx": number, "label": label}


def mmlu(number, **changed):
    return {"question": f"q{number}", "subject": "anatomy", "choices": list("abcd"), "answer": number % 4, **changed}


def trivia(number, **changed):
    return {"question": f"q{number}", "answer": {"aliases": [f"a{number}"], "value": f"a{number}"}, **changed}


def piqa(number, **changed):
    return {"goal": f"goal {number}", "sol1": f"x{number}", "sol2": f"y{number}", "label": number % 2, **changed}


def hellaswag(number, **changed):
    own = {"ctx_a": f"a {number}.", "ctx_b": "he", "ctx": f"a {number} he", "endings": list("wxyz")}
    return {"ind": number, "activity_label": "act", **own, "label": str(number % 4), **changed}


def winogrande(number, **changed):
    return {"sentence": f"the _ is {number}", "option1": "cat", "option2": "dog", "answer": "1", **changed}


def good(make, count=5):
    return [make(number) for number in range(count)]


@pytest.mark.parametrize(
    "name, split, make, last, complaint",
    [
        ("arc_easy", "test", arc, arc(9, answerKey=None), "None is not in list"),
        ("arc_easy", "test", arc, arc(9, answerKey="Z"), "'Z' is not in list"),
        ("arc_easy", "test", arc, arc(9, question=None), "the word None where its field question is null"),
        ("arc_easy", "test", arc, arc(9, **offered()), "has no choices to score"),
        ("arc_easy", "test", arc, arc(9, **offered("a", "")), "an empty choice: number 1"),
        ("arc_easy", "test", arc, arc(9, **offered("a", None)), "a choice that is no text: number 1 is null"),
        ("boolq", "validation", boolq, boolq(9, -1), "the target -1, which is none of its 2 choices; mend"),
        ("boolq", "validation", boolq, boolq(9, 2), "the target 2, which is none of its 2 choices"),
        ("boolq", "validation", boolq, boolq(9, None), "no right choice: its target is null"),
        ("mmlu_anatomy", "test", mmlu, mmlu(9, answer=4), "the target 4, which is none of its 4 choices"),
        ("triviaqa", "validation", trivia, trivia(9, answer={"aliases": [], "value": ""}), "its target is \\[\\]"),
        ("triviaqa", "validation", trivia, trivia(9, answer=None), "'None' has no attribute 'aliases'"),
        ("hellaswag", "validation", hellaswag, hellaswag(9, endings=[]), "has no choices to score"),
        ("winogrande", "validation", winogrande, winogrande(9, answer=""), "cannot be formatted .KeyError"),
        ("winogrande", "validation", winogrande, winogrande(9, sentence="no gap"), "cannot be formatted"),
        ("lambada_openai", "test", lambda n: {"text": f"it is {n}"}, {"text": ""}, "no text to score: it is empty"),
    ],
)
def test_the_last_document_is_in_trouble(name, split, make, last, complaint, found):
    rows = [*good(make), last]
    with pytest.raises(UserError, match=rf"{split}.jsonl line 11: .*{name}.*{complaint}"):
        found(name, **{split: rows})
    assert found(name, documents=3, **{split: rows}).documents == 6, "a document that is not evaluated does not count"
    assert found(name, **{split: good(make)}).documents == 5


def test_a_document_that_the_tasks_own_function_stumbles_over(found):
    """lm-eval processes a split as a whole, also where only a part of it is evaluated."""
    for documents in (None, 3):
        with pytest.raises(UserError, match=r"validation.jsonl line 11: lm-eval's task hellaswag .*'capitalize'"):
            found("hellaswag", documents, validation=[*good(hellaswag), hellaswag(9, ctx_b=None)])


def test_choices_that_are_alike_are_fine(found):
    assert found("arc_easy", test=[arc(0), arc(1, **offered("same", "same"))]).documents == 2


@pytest.mark.parametrize(
    "name, rows",
    [
        ("boolq", [boolq(number, -1) for number in range(4)]),
        ("piqa", [piqa(number, label=-1) for number in range(4)]),
        ("triviaqa", [trivia(number, answer={"aliases": [""], "value": ""}) for number in range(4)]),
    ],
)
def test_a_split_whose_labels_are_withheld(name, rows, found):
    with pytest.raises(UserError, match="validation.jsonl line 1: .*like every other; labels that are withheld cannot"):
        found(name, validation=rows)


@pytest.mark.parametrize(
    "pool, complaint",
    [
        (good(mmlu, 2), r"dev.jsonl: 2 documents and task mmlu_anatomy takes 5 examples.*task.fewshot=2"),
        ([mmlu(1)] * 6, r"dev.jsonl: 6 documents, all of them alike, and .*task.fewshot=1"),
        (
            [*good(mmlu, 4), mmlu(4, answer=-1)],
            r"dev.jsonl line 9: as an example of task mmlu_anatomy it has the target -1",
        ),
        (
            [*good(mmlu, 4), mmlu(4, answer=None)],
            r"dev.jsonl line 9: as an example .* has no answer: its target is null",
        ),
    ],
)
def test_examples_that_do_not_suffice(pool, complaint, found):
    with pytest.raises(UserError, match=complaint):
        found("mmlu_anatomy", fewshot=5, test=good(mmlu), dev=pool)
    assert found("mmlu_anatomy", fewshot=0, test=good(mmlu), dev=pool).documents == 5


def test_a_pool_with_doubles_will_do(found):
    """MMLU's own five of college physics are four."""
    assert found("mmlu_anatomy", fewshot=5, test=good(mmlu), dev=[*good(mmlu, 4), mmlu(1)]).documents == 5


def test_examples_from_a_pool_that_is_the_question_itself(found):
    """lm-eval keeps a document out of its own examples: three are one too few for three."""
    with pytest.raises(UserError, match=r"train.jsonl: task piqa takes 3 examples .*task.fewshot=2"):
        found("piqa", fewshot=3, validation=good(piqa), train=good(piqa, 3))
    assert found("piqa", fewshot=2, validation=good(piqa), train=good(piqa, 3)).documents == 5
    lines = [{"text": "it is one"}] * 4
    with pytest.raises(
        UserError, match=r"test.jsonl: 4 documents, all of them alike, .*lambada_openai takes 2 examples"
    ):
        found("lambada_openai", fewshot=2, test=lines)


def test_an_example_that_is_never_drawn_does_not_count(found):
    """The examples that are looked at are those that lm-eval draws for the documents that are evaluated."""
    pool = [piqa(number, sol1=None, label=0) if number == 70 else piqa(number) for number in range(200)]
    assert found("piqa", fewshot=1, validation=good(piqa, 2), train=pool).documents == 2
    with pytest.raises(UserError, match=r"train.jsonl line 141: as an example"):
        found("piqa", fewshot=190, validation=good(piqa, 2), train=pool)


def test_tasks_that_cannot_run_here_are_refused_before_their_documents(found, monkeypatch):
    from idp.tasks import catalog

    definition = catalog.definition
    for option, complaint in [
        ({"doc_to_image": ["image"]}, "images or sounds"),
        ({"unsafe_code": True}, "runs code that the model has written"),
        ({"output_type": "generate_until", "generation_kwargs": {"until": ["\n"], "do_sample": True}}, "not greedy"),
    ]:
        monkeypatch.setattr(catalog, "definition", lambda *given, option=option: definition(*given) | option)
        with pytest.raises(UserError, match=complaint):
            found("piqa", validation=good(piqa))
