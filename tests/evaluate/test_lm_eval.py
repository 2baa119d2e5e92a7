"""lm-eval's own command line on our models: a run with its bank, an export with a prompt, as the record has them."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from pyarrow import parquet

from idp.errors import UserError
from idp.lm_eval import main

WORDS = ["bridge", "river", "stone", "seven", "moon", "water", "old", "house"]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """The folder of a task of one's own with as many right answers as wrong ones, at any model's odds."""
    folder = tmp_path_factory.mktemp("task")
    rows = [
        {"q": f"What is near the {word}?", "offered": [WORDS[i - 1], WORDS[i - 3], "sun"], "right": i % 3}
        for i, word in enumerate(WORDS)
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    definition = {
        "task": "near",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "test.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Q: {{q}} A:",
        "doc_to_choice": "offered",
        "doc_to_target": "right",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "near.yaml").write_text(yaml.safe_dump(definition))
    return folder


@pytest.fixture
def lm_eval(task, tmp_path, monkeypatch):
    """`lm_eval(*words)`: its results on the task, and each document's log-likelihoods."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def run(*words: str):
        out = tmp_path / "out"
        given = ["lm_eval", *words, "--tasks", "near", "--include_path", str(task), "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", [*given, "--output_path", str(out), "--log_samples"])
        main()
        results = json.loads(max(out.rglob("results_*.json")).read_text())
        lines = max(out.rglob("samples_near_*.jsonl")).read_text().splitlines()
        samples = sorted(map(json.loads, lines), key=lambda sample: sample["doc_id"])
        return results, [[float(value[0]) for value in sample["filtered_resps"]] for sample in samples]

    return run


def recorded(folder: Path, model: str) -> list[list[float]]:
    """Each document's log-likelihoods in a run's own samples."""
    rows = parquet.read_table(folder / "samples.parquet").to_pylist()
    rows = sorted((row for row in rows if row["model"] == model), key=lambda row: row["doc_id"])
    return [row["loglikelihoods"] for row in rows]


def of_task(task: Path) -> tuple[str, ...]:
    return (f"task.include_path={task}", "task.names=[near]")


@pytest.mark.parametrize("place", ["run", "export"])
def test_a_bank_scores_as_in_its_record(place, task, lm_eval, finished_run, tmp_path):
    from idp.export.checkpoint import export
    from idp.export.options import ExportOptions

    bank = ("recovery=idp", "recovery.lengths=[3,5]", "recovery.controls=false")
    selector = "recovery/selector=attention_calibrated"
    folder, record = finished_run("compressor=gptq4", *bank, selector, "baselines=true", *of_task(task))
    if place == "export":
        export(ExportOptions(str(folder), str(tmp_path / "export")))
    record_words = f"record={folder if place == 'run' else tmp_path / 'export'}"
    results, values = lm_eval("--model", "idp", "--model_args", record_words, "--batch_size", "4")
    assert values == [pytest.approx(each, abs=1e-5) for each in recorded(folder, "repaired")]
    assert results["results"]["near"]["acc,none"] == record["results"]["near"]["acc,none"]
    assert results["config"]["idp_run"] == record["idp"]["name"] and len(results["config"]["idp_prompts"]) == 2
    if place == "run":
        _, values = lm_eval("--model", "idp", "--model_args", f"{record_words},variant=dense,batch_tokens=64")
        assert values == [pytest.approx(each, abs=1e-5) for each in recorded(folder, "dense")]
        assert values[0] != pytest.approx(recorded(folder, "repaired")[0], abs=1e-3)


def test_lm_eval_s_own_model_takes_an_export_and_its_prompt(task, lm_eval, finished_run, tmp_path):
    from idp.export.checkpoint import export
    from idp.export.options import ExportOptions

    folder, record = finished_run("compressor=gptq4", "recovery=prompt", "recovery.length=4", *of_task(task))
    out = tmp_path / "export"
    export(ExportOptions(str(folder), str(out)))
    (prompt,) = [place for place in (out / "prompts").iterdir() if place.is_dir()]
    results, values = lm_eval("--model", "hf", "--model_args", f"pretrained={out},peft={prompt},dtype=float32")
    assert values == [pytest.approx(each, abs=1e-3) for each in recorded(folder, "repaired")]
    assert results["results"]["near"]["acc,none"] == record["results"]["near"]["acc,none"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("variant=dense", "the model idp needs record=<a run's folder or an export>"),
        ("record=/nowhere", "record=/nowhere: no such file"),
        ("record=x,variant=best", "--model_args variant=best: use dense, compressed, repaired"),
        ("record=x,dtype=int8", "--model_args dtype=int8: use auto, float32"),
        ("record=x,peft=y", "the model idp does not take peft; use record, variant"),
        ("record=x,batch_tokens=0", "--model_args batch_tokens=0: use a whole number"),
    ],
)
def test_one_line_for_each_mistake(arguments, message):
    from idp.lm_eval_model import IdpLM

    with pytest.raises(UserError) as raised:
        IdpLM.create_from_arg_string(arguments, {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"})
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_mistake_ends_the_command(lm_eval):
    with pytest.raises(SystemExit) as stopped:
        lm_eval("--model", "idp", "--model_args", "record=/nowhere")
    assert str(stopped.value).startswith("error: record=/nowhere: no such file")


def test_a_chat_is_the_tokenizer_s(finished_run, task):
    from idp.lm_eval_model import IdpLM

    model = IdpLM(record=finished_run("compressor=gptq4", "recovery=prompt", "recovery.length=4", *of_task(task))[0])
    chat = [{"role": "user", "content": "two"}]
    with pytest.raises(UserError, match="has no chat template"):
        model.apply_chat_template(chat)
    model.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert model.apply_chat_template(chat) == "<user>two"
