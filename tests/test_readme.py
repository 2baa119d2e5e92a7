"""Every command in the README and the docs runs: as it stands where it is quick, else on a tiny model."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from idp.commands import COMMANDS

from .processes import python

ROOT = Path(__file__).parent.parent
IDP = ("compressor=gptq3", "recovery=idp", "recovery.lengths=[3,5]", "baselines=true")
QUICK = ("model=tiny_llama", "task=arc_easy", "budget=smoke", "tracker=none")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands():
    for page in PAGES:
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), flags=re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip() and not line.lstrip().startswith("#"):
                    yield pytest.param(line.split(" #")[0].strip(), id=f"{page.name}: {line.strip()[:60]}")


def scripts():
    """Each page's Python as one script; what is about other libraries is not ours to run."""
    for page in PAGES:
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S)
        if any("import idp" in block for block in blocks):
            yield pytest.param("\n".join(blocks), id=page.name)


def as_module(words):
    """`idp report x` as `python -m idp.report x`."""
    if words[0] != "idp" or words[1].startswith("-"):
        return words
    command = COMMANDS[words[1]]
    module = command.module.removesuffix(".__main__").replace("store_command", "store")
    return ["python", "-m", module, *command.before, *words[2:], *command.after]


def test_there_are_commands():
    assert len(list(commands())) >= 5


@pytest.mark.parametrize("command", commands())
def test_it_runs(command, idp_run, run_here, finished_run, model_folders, shared_store, tmp_path, monkeypatch, capsys):
    words = shlex.split(command)
    while re.match("[A-Z_]+=", words[0]):  # what is set for one command
        words = words[1:]
    words = as_module(words)
    if words[0] == "make":
        targets = subprocess.run(["make", "-n", words[1]], cwd=ROOT, capture_output=True, text=True)
        assert targets.returncode == 0, targets.stderr
    elif "hydra/launcher=slurm" in words or words[2:3] == ["idp.sweep"]:
        pytest.skip("tests/slurm runs it, on a SLURM")
    elif words[:3] == ["python", "-m", "idp.run"]:
        overrides = [
            re.sub("/path/to/(your/model|their/checkpoint)", str(model_folders("llama")), w) for w in words[3:]
        ]
        overrides = repairs_in_place(overrides, run_here, model_folders, tmp_path)
        overrides = [word.replace("FOLDER", str(evidence(tmp_path))) for word in overrides]
        small = ["budget=smoke", "tracker=none"]
        if not any(word.startswith("store=") for word in overrides):
            small.append(shared_store)  # the commands have much in common
        overrides = [word for word in overrides if word != "model=llama_7b"]  # no hub here
        if not any(word.startswith("model=") for word in overrides):
            small.append("model=tiny_llama")
        if any(word == "task=all" for word in overrides):
            small.append("task=commonsense")  # the last word wins; that all nine run is another test's business
        if "task=knowledge" in overrides and not any(word.startswith("task.names=") for word in overrides):
            small.append("task.names=[mmlu_anatomy,jeopardy,squad_closed_book,squad_open_book]")
        if any("optuna" in word for word in overrides):
            pytest.importorskip("optuna", minversion="4.4")
            small.append("hydra.sweeper.n_trials=2")
        if any(word.startswith("-") for word in overrides):
            idp_run(*overrides, *small)
        else:
            run_here(*overrides, *small)
    elif words[:3] == ["python", "-m", "idp.export"]:
        from idp.export.__main__ import main

        repaired = ("compressor=external", f"compressor.path={model_folders('llama')}", "recovery=lowrank")
        record = run_here(*QUICK, *(repaired if "only=repair" in words else ("compressor=gptq4",)), shared_store)
        run = tmp_path / "outputs" / "runs" / record["idp"]["name"]
        main([w.replace("/path/to/your/run", str(run)).replace("exports/", f"{tmp_path}/") for w in words[3:]])
    elif words[:3] == ["python", "-m", "idp.generate"]:
        from idp.generate import main

        run, _ = finished_run(*IDP)
        (tmp_path / "prompts.txt").write_text("Water boils at\n")
        monkeypatch.chdir(tmp_path)
        (tmp_path / "outputs" / "runs").mkdir(parents=True)
        (tmp_path / "outputs" / "runs" / run.name).symlink_to(run)
        main([w.replace("/path/to/your/run", str(run)) for w in words[3:]])
        assert "given prompt_" in capsys.readouterr().out
    elif words[:3] == ["python", "-m", "idp.analyze"]:
        from idp.analyze.__main__ import main

        run, _ = finished_run(*IDP)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "outputs" / "runs").mkdir(parents=True)
        (tmp_path / "outputs" / "runs" / run.name).symlink_to(run)
        main([w.replace("/path/to/your/run", str(run)) for w in words[3:]])
        assert "written: " in capsys.readouterr().out
    elif words[0] == "lm_eval" or words[:3] == [
        "python",
        "-m",
        "idp.lm_eval",
    ]:  # tests/evaluate/test_lm_eval.py runs both
        done = python("-m", words[2] if words[0] == "python" else "lm_eval", "--help", cwd=ROOT)
        assert done.returncode == 0 and "--model_args" in done.stdout, done.stderr
    elif words[:2] == ["python", "docs/serving_proxy.py"]:  # it runs in tests/export/test_serving_proxy.py
        assert (ROOT / words[1]).is_file()
    elif words[0] in ("vllm", "curl"):
        pytest.skip("needs vLLM")
    elif words[:3] == ["python", "-m", "idp.bench.attention"]:
        from benchmarks.attention import main

        main(words[3:])
        assert "evaluation.batch_tokens=null: " in capsys.readouterr().out
    elif words[:3] == ["python", "-m", "idp.bench.cost"]:  # those of experiments/README.md run in test_bench_cost.py
        done = python(*words[1:], "--help", cwd=ROOT)
        assert done.returncode == 0 and "tflops=" in done.stdout, done.stderr
    elif words[:3] == ["python", "-m", "idp.bench.training"]:  # it runs in tests/test_bench_training.py
        done = python(*words[1:], "--help", cwd=ROOT)
        assert done.returncode == 0 and "--rounds" in done.stdout, done.stderr
    elif words[:3] == ["python", "-m", "idp.bench.teacher"]:  # it runs in tests/test_bench_teacher.py
        done = python(*words[1:], "--help", cwd=ROOT)
        assert done.returncode == 0 and "--blocks" in done.stdout, done.stderr
    elif words[:3] == ["python", "-m", "idp.bench.memory"]:  # it runs in tests/test_bench_memory.py
        done = python(*words[1:], "--help", cwd=ROOT)
        assert done.returncode == 0 and "--shapes" in done.stdout, done.stderr
    elif words[:3] == ["python", "-m", "idp.bench.fidelity"]:  # it runs in tests/test_bench_fidelity.py
        done = python(*words[1:], "--help", cwd=ROOT)
        assert done.returncode == 0 and "--windows" in done.stdout, done.stderr
    elif words[:3] == ["python", "-m", "tests.faults"]:  # it runs in tests/faults/test_faults.py
        done = python(*words[1:], "--help", cwd=ROOT)
        assert done.returncode == 0 and "--count" in done.stdout, done.stderr
    elif words[:3] == ["python", "-m", "tests.analyze.simulations"]:  # tests/analyze/test_simulations.py runs a part
        done = python(*words[1:], "--help", cwd=ROOT)
        assert done.returncode == 0 and "--studies" in done.stdout, done.stderr
    elif words[:3] == ["python", "-m", "idp.report"]:
        run_here(*QUICK, "compressor=rtn4", shared_store)
        done = python(*words[1:], cwd=tmp_path)
        assert done.returncode == 0 and "rtn4" in done.stdout, done.stderr
    elif words[:3] == ["python", "-m", "idp.dashboard"]:
        run_here(*QUICK, "compressor=rtn4", shared_store)
        dry = [] if "--dry-run" in words else ["--dry-run", "dashboard.json"]
        done = python(*words[1:], *dry, cwd=tmp_path)
        assert done.returncode == 0 and (tmp_path / "dashboard.json").exists(), done.stderr
    elif words[:3] == ["python", "-m", "idp.store"]:
        from idp.store_command import main

        run, _ = finished_run(*IDP)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "outputs").symlink_to(run.parents[1])
        main([word for word in words[3:] if word != "--yes"])  # the other tests' products stay
        assert "products" in capsys.readouterr().out
    elif words[0] == "sh":
        assert subprocess.run(["sh", "-n", words[1]], cwd=ROOT).returncode == 0
    elif words[:1] == ["eval"] and "--shell-completion" in words[1]:  # what it then completes: tests/test_cli.py
        assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0
    elif words[0] in ("git", "cd", "pip", "mkdir"):
        pytest.skip("sets up the checkout, or a folder of a group")
    elif words[0] == "wandb":
        wandb = Path(sys.executable).with_name("wandb")
        assert subprocess.run([wandb, words[1], "--help"], capture_output=True).returncode == 0
    else:
        pytest.fail(f"no way to try: {command}")


def test_there_is_python():
    assert len(list(scripts())) >= 2


@pytest.mark.parametrize("script", scripts())
def test_python_runs(script, finished_run, model_folders, tmp_path, capsys, monkeypatch):
    run, _ = finished_run(*IDP)
    monkeypatch.chdir(tmp_path)
    for sign, place in (("/path/to/your/run", run), ("/path/to/your/model", model_folders("llama"))):
        script = script.replace(sign, str(place))
    exec(compile(script, "<docs>", "exec"), {})
    assert "prompt_" in capsys.readouterr().out


def evidence(folder):
    """A `data_dir` with TriviaQA's questions, each with the page that names its answer."""
    lines = []
    for number in range(9):
        pages = {"wiki_context": [f"It lies in city {number}."], "title": [], "filename": [], "doc_source": []}
        answer = {"aliases": [f"City {number}"], "value": f"City {number}"}
        question = {"question_id": f"q{number}", "question": f"Where is {number}?"}
        lines.append(json.dumps({**question, "answer": answer, "entity_pages": pages}) + "\n")
    file = folder / "data" / "triviaqa" / "validation.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(lines))
    return file.parent.parent


def repairs_in_place(overrides, run_here, model_folders, tmp_path):
    """The overrides with a repair where they name one of the reader's."""
    words = " ".join(overrides)
    if "/path/to/your/run" in words:
        length = next((word for word in overrides if word.startswith("recovery.length=")), "recovery.length=4")
        small = ("compressor=rtn3", "recovery=prompt", length, "evaluation.perplexity=[]")
        record = run_here(
            "model=tiny_llama", "budget=smoke", "tracker=none", "task=arc_easy", "baselines=false", *small
        )
        run = tmp_path / "outputs" / "runs" / record["idp"]["name"]
        overrides = [word.replace("/path/to/your/run", str(run)) for word in overrides]
    if "/path/to/a/bank" in words:
        import torch
        from transformers import AutoConfig

        from idp.prompting.bank import PromptBank

        bank = PromptBank([torch.randn(3, 64), torch.randn(4, 64)], ["one", "other"])
        bank.save(tmp_path / "bank", AutoConfig.from_pretrained(model_folders("llama")), "theirs")
        places = {"/path/to/a/prompt": tmp_path / "bank" / "prompt_0", "/path/to/a/bank": tmp_path / "bank"}
        for place, real in places.items():
            overrides = [word.replace(place, str(real)) for word in overrides]
    return overrides
