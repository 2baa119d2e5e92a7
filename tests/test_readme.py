"""Every command in the README and the docs runs: as it stands where it is quick, else on a tiny model."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands():
    for page in PAGES:
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), flags=re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip() and not line.lstrip().startswith("#"):
                    yield pytest.param(line.split(" #")[0].strip(), id=f"{page.name}: {line.strip()[:60]}")


def test_there_are_commands():
    assert len(list(commands())) >= 5


@pytest.mark.parametrize("command", commands())
def test_it_runs(command, idp_run, run_here, model_folders, tmp_path):
    words = shlex.split(command)
    if words[0] == "make":
        targets = subprocess.run(["make", "-n", words[1]], cwd=ROOT, capture_output=True, text=True)
        assert targets.returncode == 0, targets.stderr
    elif words[:3] == ["python", "-m", "idp.run"]:
        overrides = [
            re.sub("/path/to/(your/model|their/checkpoint)", str(model_folders("llama")), w) for w in words[3:]
        ]
        small = ["budget=smoke", "tracker=none"]
        if not any(word.startswith("model=") for word in overrides):
            small.append("model=tiny_llama")
        if any(word == "task=all" for word in overrides):
            small.append("task=commonsense")  # the last word wins; that all nine run is another test's business
        if any(word.startswith("-") for word in overrides):
            idp_run(*overrides, *small)
        else:
            run_here(*overrides, *small)
    elif words[:3] == ["python", "-m", "idp.export"]:
        from idp.export.__main__ import main

        record = run_here("model=tiny_llama", "compressor=gptq4", "task=arc_easy", "budget=smoke", "tracker=none")
        run = tmp_path / "outputs" / "runs" / record["idp"]["name"]
        main([w.replace("/path/to/your/run", str(run)).replace("exports/", f"{tmp_path}/") for w in words[3:]])
    elif words[:3] == ["python", "-m", "idp.bench.training"]:
        tiny = ["--shape", "tiny", "--rounds", "2", "--steps", "1", "--output", str(tmp_path / "training.json")]
        done = subprocess.run([sys.executable, *words[1:], *tiny], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and "ours is faster by" in done.stdout, done.stderr
    elif words[:3] == ["python", "-m", "idp.report"]:
        run_here("model=tiny_llama", "compressor=rtn4", "task=arc_easy", "budget=smoke", "tracker=none")
        done = subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and "rtn4" in done.stdout, done.stderr
    elif words[0] in ("git", "cd", "pip"):
        pytest.skip("sets up the checkout")
    elif words[0] == "wandb":
        assert subprocess.run(["wandb", words[1], "--help"], capture_output=True).returncode == 0
    else:
        pytest.fail(f"no way to try: {command}")
