"""What lm-eval's own command line writes of a model, held against a run of the same model: not one document differs."""

import json

import pytest

from idp.analyze.__main__ import main
from tests.analyze.lm_eval_runs import evaluate
from tests.evaluate.test_own import CAPITALS

SAID = """
task: said
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: generate_until
doc_to_text: q
doc_to_target: q
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
metric_list: [{metric: exact_match}]
filter_list:
  - name: whole
    filter: [{function: take_first}]
  - name: start
    filter: [{function: regex, regex_pattern: "(q)"}, {function: take_first}]
"""


@pytest.fixture
def tasks_folder(tmp_path):
    """Two tasks with their documents, one of them in a group."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"q": f"question {n}?", "offered": ["C", "D"], "right": n % 2}) + "\n" for n in range(40))
    )
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    local = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {rows}}}}}"
    capitals = CAPITALS.replace("dataset_path: none", local).replace("training_split: train\n", "")
    (tasks / "capitals.yaml").write_text(capitals)
    (tasks / "said.yaml").write_text(SAID.replace("ROWS", str(rows)))
    (tasks / "group.yaml").write_text("group: both\ntask: [capitals]\naggregate_metric_list: [{metric: acc}]\n")
    return tasks


def test_a_run_and_lm_eval_agree_on_every_document(
    tasks_folder, model_folders, run_here, tmp_path, monkeypatch, capsys
):
    output = evaluate(
        model_folders("llama"), tasks_folder, ["both", "said"], tmp_path / "out", monkeypatch, "--log_samples"
    )
    record = run_here(
        *(
            "model=local",
            f"model.path={model_folders('llama')}",
            "model.dtype=float32",
            "compressor=none",
            "recovery=none",
        ),
        *(
            "budget=smoke",
            "tracker=none",
            "evaluation.perplexity=[]",
            "task=custom",
            "task.names=[capitals,said]",
            "budget.documents=40",
        ),
        f"task.include_path={tasks_folder}",
    )
    run = tmp_path / "outputs" / "runs" / record["idp"]["name"]
    capsys.readouterr()
    main(["compare", str(output), str(run), "json=true"])
    [found] = json.loads(capsys.readouterr().out)["comparisons"]
    assert not found["not_compared"] and not found["notes"], found
    assert list(found["tasks"]) == ["capitals", "said"] and list(found["groups"]) == ["both"]
    for task, test in found["tasks"].items():
        assert (test["difference"], test["gained"], test["lost"]) == (0, 0, 0)
        assert test["before"] == test["after"] == record["results"][task][test["metric"]]
        assert test["documents"] == 40
    main(["compare", str(run), str(output), "metric=exact_match,start"])
    said = capsys.readouterr().out
    assert "| said   | exact_match,start" in said and "0 (nothing changed)" in said
    assert "- not compared: capitals: no metric exact_match,start in" in said
