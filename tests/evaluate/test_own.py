"""Tasks of the user's own: `task.include_path`, from a YAML file to a record."""

import json
import logging
import shutil

import pytest

from idp import hub
from idp.config import Task
from idp.errors import UserError
from idp.tasks.tasks import find_tasks

from .test_encoding import MERGES, bpe, loaded_with

CAPITALS = """
task: capitals
dataset_path: none
test_split: test
training_split: train
output_type: multiple_choice
doc_to_text: "Q: {{q}} A:"
doc_to_choice: offered
doc_to_target: right
metric_list:
  - metric: acc
"""
ROWS = [{"q": f"q{number}", "offered": ["C", "D"], "right": number % 2} for number in range(6)]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: False)


@pytest.fixture
def own(tmp_path):
    """`own(files, *names, data=..., include=None, **options)`: what `find_tasks` finds with such files in a folder."""

    def find(files, *names, data=("capitals",), include=None, fewshot=None, documents=None):
        shutil.rmtree(tmp_path / "tasks", ignore_errors=True)
        for name, content in files.items():
            (tmp_path / "tasks" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "tasks" / name).write_text(content)
        for task in data:
            for split in ("test", "train"):
                (tmp_path / "data" / task).mkdir(parents=True, exist_ok=True)
                (tmp_path / "data" / task / f"{split}.jsonl").write_text(
                    "".join(json.dumps(row) + "\n" for row in ROWS)
                )
        include = (
            str(tmp_path / "tasks") if include is None else [str(tmp_path / "tasks" / folder) for folder in include]
        )
        folder = str(tmp_path / "data") if data else None
        return find_tasks(Task(list(names), folder, fewshot, documents, include))

    return find


def context(source):
    task = source.build()
    task.build_all_requests()
    return [instance.args for instance in task.instances]


def test_a_task_with_examples(own):
    (source,) = own({"a.yaml": CAPITALS}, "capitals", fewshot=2)
    assert (source.source, source.split, source.documents) == ("data_dir", "test", 6)
    made = context(source)
    assert [pair[1] for pair in made[:2]] == [" C", " D"]
    assert made[0][0].count("Q: ") == 3 and made[0][0].endswith("\n\nQ: q0 A:")


def test_groups_tags_includes_and_functions(own):
    """In folders below, in a group with one of lm-eval's, and behind a tag in an included file."""
    files = {
        "base": CAPITALS.replace("\ntask: capitals", "\ntag: geography"),
        "one/capitals.yaml": "include: ../base\ntask: capitals\ndoc_to_text: !function utils.text\n",
        "one/utils.py": "def text(doc):\n    return 'asked: ' + doc['q']\n",
        "two/rivers.yaml": "include: ../base\ntask: rivers\ntag: [geography, water]\n",
        "group.yaml": "group: mine\ntask: [rivers, copa, geography]\n",
    }
    both = ("capitals", "rivers")
    assert [source.name for source in own(files, "mine", data=both)] == ["rivers", "copa", "capitals"]
    assert [source.name for source in own(files, "geography", "water", data=both)] == ["capitals", "rivers"]
    assert context(own(files, "capitals")[0])[0] == ("asked: q0", " C")
    assert [source.name for source in own(files, *both, data=both, include=["one", "two"])] == list(both)


def test_what_is_edited_is_another_task(own):
    """In the YAML, in what it includes and in its Python; not where the folder is, nor in what it does not read."""
    files = {
        "base.yaml": CAPITALS.replace("\ntask: capitals", ""),
        "a.yaml": "include: base.yaml\ntask: capitals\ndoc_to_text: !function utils.text\n",
        "utils.py": "from pathlib import Path\n\n\ndef text(doc):\n    return doc['q']\n",
    }

    def fingerprint(changed, **options):
        return own(files | changed, "capitals", **options)[0].fingerprint

    first = fingerprint({})
    assert fingerprint({"notes.txt": "x"}) == first
    assert fingerprint({f"deep/{name}": content for name, content in files.items()}, include=["deep"]) == first
    others = [
        fingerprint({"base.yaml": files["base.yaml"] + "description: Choose.\n"}),
        fingerprint({"a.yaml": files["a.yaml"] + "target_delimiter: ''\n"}),
        fingerprint({"utils.py": files["utils.py"].replace("doc['q']", "doc['q'] + '!'")}),
    ]
    assert len({first, *others}) == 4


def changed(old, new):
    assert old in CAPITALS
    return {"a.yaml": CAPITALS.replace(old, new)}


@pytest.mark.parametrize(
    "files, complaint",
    [
        ({"a.yaml": "task: [unclosed\n"}, "a.yaml line 2: not YAML as lm-eval reads it"),
        ({"a.yaml": "- a\n"}, "a.yaml: holds no mapping"),
        (changed("task: capitals\n", ""), r"named capitals \(a.yaml: no `task:` or `group:` there names it\)"),
        (changed("task: capitals", "task: capitols"), "named capitals; did you mean capitols"),
        ({"a.yaml": "include: gone.yaml\ntask: capitals\n"}, "a.yaml: includes .*gone.yaml, which is not there"),
        ({"a.yaml": "include: a.yaml\ntask: capitals\n"}, "files include one another"),
        (
            changed("multiple_choice", "multiple_select"),
            "a.yaml: output_type: multiple_select is not known; use one of",
        ),
        (changed("doc_to_choice: offered\n", ""), "a.yaml: doc_to_choice is missing"),
        (changed("{{q}}", "{{question}}"), "a.yaml: .*test.jsonl line 1: .*'question' is undefined"),
        (changed("offered", "options"), "doc_to_choice: options is no field of the documents, which have q, offered"),
        (changed('"Q: {{q}} A:"', "question"), "a.yaml: doc_to_text: question is no field of the documents"),
        (changed("metric: acc", "metric: accuracy"), "a.yaml: lm-eval has no metric named accuracy"),
        (changed("training_split: train", "train_split: train"), "a.yaml: train_split is no option of an lm-eval task"),
        (changed('"Q: {{q}} A:"', "!function utils.text"), "a.yaml: its !function cannot be had: ImportError"),
        ({"a.yaml": CAPITALS, "b.yaml": CAPITALS}, "b.yaml: .*a.yaml has the name capitals already"),
        (changed("task: capitals", "task: piqa"), "a.yaml: lm-eval has a task or group named piqa already"),
        (changed("task: capitals", "task: commonsense"), "a.yaml: lm-eval has a task or group named commonsense"),
        ({"a.yaml": CAPITALS, "g.yaml": "group: capitals2\ntask: capitals\n"}, "g.yaml: the group capitals2 must list"),
        ({"a.yml": CAPITALS}, r"there is no .yaml file in it"),
    ],
)
def test_a_file_that_cannot_be_used(files, complaint, own):
    with pytest.raises(UserError, match=complaint) as error:
        own(files, "capitals")
    assert "\n" not in str(error.value) and "0x" not in str(error.value)


def test_a_data_set_that_is_missing_and_one_beside_the_yaml(own, tmp_path):
    with pytest.raises(UserError, match="no documents for task capitals .*names no dataset_path"):
        own(changed("dataset_path: none\n", ""), "capitals", data=())
    assert own(changed("dataset_path: none\n", ""), "capitals")[0].documents == 6
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    local = changed("dataset_path: none", "dataset_path: json\ndataset_kwargs:\n  data_files: {test: rows.jsonl}")
    (source,) = own(local | {"rows.jsonl": lines}, "capitals", data=())
    assert (source.source, source.documents) == ("files", 6)
    with pytest.raises(UserError, match=r"rows.jsonl test row 6: document 6 .* the target 7"):
        own(local | {"rows.jsonl": lines + json.dumps(ROWS[0] | {"right": 7}) + "\n"}, "capitals", data=())


def test_a_metric_that_fails_on_a_document_is_found_before_anything_is_computed(own):
    files = {
        "a.yaml": CAPITALS + "process_results: !function utils.score\n",
        "utils.py": "def score(doc, results):\n    return {'acc': 1 / (5 - int(doc['q'][1:]))}\n",
    }
    with pytest.raises(UserError, match="test.jsonl line 6: document 5 .* its metric fails .ZeroDivisionError"):
        own(files, "capitals")
    assert own(files, "capitals", documents=2)[0].documents == 6


def test_a_path_that_is_no_folder_or_no_name(own, tmp_path):
    for include, complaint in [("gone", "there is no such folder"), ("a.yaml", "is a file; give its folder")]:
        with pytest.raises(UserError, match=complaint):
            own({"a.yaml": CAPITALS}, "capitals", include=[include])
    file = tmp_path / "tasks" / "a.yaml"
    with pytest.raises(UserError, match=rf"use task.include_path={file.parent} task.names=\[capitals\]"):
        find_tasks(Task([str(file)], None, None, None))
    with pytest.raises(UserError, match="is no task, nor is there such a file"):
        find_tasks(Task(["tasks/gone.yaml"], None, None, None))


def test_from_yaml_to_record(run_here, bridges, tmp_path, caplog):
    """Choices that merge into their context, partials, an end token of the model's own, and an edit of the YAML."""
    folder, tasks, data = tmp_path / "model", tmp_path / "own", tmp_path / "data"
    loaded = loaded_with(bpe(MERGES))
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2], "repetition_penalty": 1.5}))
    tasks.mkdir()
    (tasks / "capitals.yaml").write_text(CAPITALS.replace('"Q: {{q}} A:"', "!function utils.text"))
    (tasks / "utils.py").write_text(
        "from functools import partial\n\n\ndef asked(doc, end):\n    return doc['q'] + end\n\n\n"
        "text = partial(asked, end=':')\n"
    )
    (tasks / "said.yaml").write_text(
        "task: said\ndataset_path: none\ntest_split: test\ndoc_to_text: q\ndoc_to_target: q\n"
        "generation_kwargs: {until: ['\\n'], max_gen_toks: 4}\nmetric_list: [{metric: exact_match}]\n"
    )
    for name in ("capitals", "said"):
        (data / name).mkdir(parents=True)
        (data / name / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["model=local", f"model.path={folder}", "compressor=none", "recovery=none", "budget=smoke", "tracker=none"]
    words += [
        *bridges,
        "evaluation.perplexity=[]",
        "task=custom",
        "task.names=[capitals,said]",
        f"task.data_dir={data}",
    ]
    words += [f"task.include_path={tasks}"]
    with caplog.at_level(logging.WARNING):
        record = run_here(*words)
    assert record["idp"]["merged_choices"] == {"capitals": 6}
    assert sum("no tokens of their own" in line.getMessage() for line in caplog.records) == 1
    text = record["configs"]["capitals"]["doc_to_text"]
    assert text.startswith("functools.partial(") and "asked, end=" in text and "0x" not in json.dumps(record["configs"])

    def products():
        manifests = (tmp_path / "outputs" / "store" / "measure").glob("*/manifest.json")
        return [json.loads(file.read_text())["config"] for file in manifests]

    assert {config["task"]: config.get("ends") for config in products()} == {"capitals": None, "said": [2]}
    (tasks / "utils.py").write_text((tasks / "utils.py").read_text().replace("end=':'", "end='?'"))
    assert run_here(*words)["idp"]["merged_choices"] == {}
    assert sorted(config["task"] for config in products()) == ["capitals", "capitals", "said"]


def test_an_answer_that_does_not_fit_the_window_is_refused_before_the_model_is_compressed(own, compose, open_tiny):
    from idp.plan.inputs import ResolvedInputs
    from idp.plan.refusals import check_generation

    said = "task: said\ntest_split: test\ndoc_to_text: q\ndoc_to_target: q\nmetric_list: [{metric: exact_match}]\n"
    config, empty = compose("model=tiny_llama", "recovery=prompt", "recovery.length=20"), open_tiny("llama")
    for longest, refused in [(2027, False), (2028, True)]:
        options = f"generation_kwargs: {{until: ['x'], max_gen_toks: {longest}}}\n"
        inputs = ResolvedInputs(
            None, own({"a.yaml": said + options}, "said", data=("said",)), None, None, None, {}, None
        )
        if refused:
            with pytest.raises(UserError, match="said lets a model generate 2028 tokens, and the window holds 2028"):
                check_generation(config, empty, inputs)
        else:
            check_generation(config, empty, inputs)
