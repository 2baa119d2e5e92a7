"""The command line: help in a moment, and one line for whatever goes wrong."""

import json
import os

import pytest

WITHOUT_GPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
TINY = ("model=tiny_llama", "budget=smoke", "task=arc_easy", "tracker=none")


def one_error(done):
    lines = done.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0], done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return errors[0]


def test_help_names_every_choice(idp_run):
    shown = idp_run("--help").stdout
    for word in ("gptq3", "recovery=lora", "smollm2_135m_instruct", "recovery.training.learning_rate", "budget="):
        assert word in shown


def test_cfg_job_prints_the_config(idp_run):
    shown = idp_run("--cfg", "job", "compressor=gptq3", "recovery=idp").stdout
    assert "bits: 3" in shown and "lengths:" in shown


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["compressor=gptq5"], "compressor=gptq5: no such option; did you mean compressor=gptq8? There are awq3, awq4"),
        (["compressor.quantization.bit=4"], "compressor.quantization.bit: there is no such option here; did you mean"),
        (["task.groups={mine:[arc_easy]}"], "task.groups: a new entry takes a plus, such as +task.groups.name=value"),
        (["seed=abc"], "seed: Value 'abc' of type 'str' could not be converted to Integer"),
        (["task=arc_esay"], "task=arc_esay: no such option"),
        (["task=custom", "task.names=[arc_esay]"], "arc_easy"),
        (["model=local", "model.path=/nowhere"], "model.path=/nowhere: no such folder or GGUF file"),
        (["model=local"], "model.path is not set"),
        (["compressor=external"], "compressor.path is not set"),
        (["compressor=external", "compressor.path=/nowhere"], "compressor.path=/nowhere: no such folder or GGUF file"),
        (["model=opt_125m"], "model.path=facebook/opt-125m: "),
        (["corpus=local", "corpus.path=/nowhere.txt"], "/nowhere.txt"),
        (["compressor=gptq4", "compressor.quantization.group_size=48"], "does not divide model.layers.0.self_attn"),
        (["recovery=lora", "recovery.targets=[nothing]"], "no layer is called nothing; there are"),
        (["recovery=lora", "recovery.rank=33"], "recovery.rank=33: model.layers.0.self_attn.v_proj is 32 x 64; use 32"),
        (["latency=default", "latency.input_tokens=[2020]"], "that makes 2052, and the model's window is 2048"),
        (["evaluation.processes=4096"], "evaluation.processes=4096: must be from 1 to 1024"),
        (["store=/dev/null/store"], "store=/dev/null/store: cannot write there"),
        (["recovery=prompt", "evaluation.perplexity_window=2040"], "with a prompt of 25 tokens it does not fit"),
        (["recovery=prompt", "recovery.length=2000"], "do not fit in the model's window of 2048"),
        (
            ["task=custom", "task.names=[boolq]", "recovery=prompt", "corpus=embedded"],
            "made from boolq, which this run evaluates",
        ),
    ],
)
def test_one_line_for_each_mistake(overrides, message, idp_run, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = idp_run(*TINY, *overrides, fails=True)
    assert message in one_error(done)


def test_a_folder_that_is_no_model(idp_run, tmp_path):
    (tmp_path / "folder").mkdir()
    done = idp_run(*TINY, "model=local", f"model.path={tmp_path / 'folder'}", fails=True)
    assert "not a model: it has no config.json" in one_error(done)


def test_an_empty_corpus(idp_run, tmp_path):
    (tmp_path / "empty.txt").write_text("one short line\n")
    done = idp_run(*TINY, "recovery=prompt", "corpus=local", f"corpus.path={tmp_path / 'empty.txt'}", fails=True)
    assert "corpus local" in one_error(done)


def test_a_failed_run_says_so_in_its_status(idp_run, tmp_path):
    idp_run(*TINY, "recovery=lora", "recovery.targets=[nothing]", fails=True)
    (status,) = tmp_path.glob("outputs/runs/*/status.json")
    values = json.loads(status.read_text())
    assert values["state"] == "failed" and values["stage"] == "find"
    assert "no layer is called nothing" in values["error"]
    assert "Traceback" in (status.parent / "run.log").read_text()


def test_a_sweep_loses_nothing_to_a_failed_cell(idp_run, tmp_path):
    quick = ("baselines=false", "evaluation.perplexity=[]")
    done = idp_run("-m", *TINY, *quick, "model.device=cuda,cpu", fails=True, env=WITHOUT_GPU)
    assert "model.device=cuda: no CUDA device here" in done.stderr
    assert len(list(tmp_path.glob("outputs/runs/*/record.json"))) == 1


def test_your_own_model_folder(run_here, model_folders):
    place = f"model.path={model_folders('qwen2')}"
    record = run_here(*TINY, "model=local", place, "model.name=mine", "evaluation.perplexity=[]")
    assert record["config"]["model"] == "mine" and record["idp"]["parameters"]["added"] == 0
