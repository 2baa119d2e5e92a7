"""Three people's ways through the tool, by the commands of the README and the docs alone, on tiny models: a newcomer, a
practitioner with a checkpoint of her own, a researcher with a task of her own and a paper to write.
"""

import re
import shlex

import pytest

from tests.compress import packers
from tests.faults.runs import write_task
from tests.processes import python
from tests.report.tex import compiled

pytestmark = pytest.mark.slow
SMALL = ("budget=smoke", "tracker=none", "evaluation.perplexity=[]")


@pytest.fixture
def idp(tmp_path):
    """`idp(module, *words)`: a command, given where nothing is but what it was told of; what it printed."""

    def run(module, *words):
        done = python("-m", f"idp.{module}", *words, cwd=tmp_path)
        said = done.stdout + done.stderr
        assert done.returncode == 0 and "Traceback" not in said, f"idp.{module} {' '.join(words)}\n{said}"
        return done.stdout

    return run


def test_a_newcomer_follows_what_the_run_says(idp, bridges, tmp_path):
    """A first run names the commands that come next, and they work as they stand."""
    said = idp("run", "compressor=gptq4", "recovery=idp", "task=arc_easy", "model=tiny_llama", *SMALL, *bridges)
    assert "| arc_easy" in said and "difference" in said
    following = re.findall(r"^to see .*?: .*?-m idp\.(\w+) (.*)$", said, flags=re.M)
    assert [module for module, _ in following] == ["report", "generate"]
    outputs = {module: idp(module, *shlex.split(words)) for module, words in following}
    assert (tmp_path / "outputs" / "report" / "index.html").stat().st_size > 100_000
    assert "dense" in outputs["generate"] and "given prompt_" in outputs["generate"]


def test_a_practitioner_repairs_her_gptq_checkpoint_and_takes_the_repair_to_it(idp, bridges, model_folders, tmp_path):
    """What will it cost, which repair is the cheapest that helps, and the adapter that loads on her own file."""
    from peft import PeftConfig
    from safetensors.torch import load_file

    dense, hers = model_folders("llama"), tmp_path / "hers"
    packers.gptq_rounded(dense, hers, bits=4, group=32, symmetric=True, stored=1, stated="gptq")
    small = (*SMALL, *bridges, "task=arc_easy", "latency=none", "recovery=lowrank,prompt", "recovery.rank=4")
    words = ("-m", "+experiment=frontier", f"model={dense}", "compressor=external", f"compressor.path={hers}", *small)
    plan = idp("run", *words, "--plan")
    assert "lowrank" in plan and not (tmp_path / "outputs").exists(), "a plan makes nothing"
    said = idp("run", *words)
    assert re.search(r"nothing to repair here|brings back|no repair", said), said
    (run,) = (tmp_path / "outputs" / "frontier" / "runs").glob("*lowrank*")
    idp("export", f"record={run}", "out=repair", "only=repair")
    assert PeftConfig.from_pretrained(tmp_path / "repair" / "lora").base_model_name_or_path == str(hers)
    assert {tensor.shape[0] for name, tensor in load_file(tmp_path / "repair/lora/adapter_model.safetensors").items()
            if "lora_A" in name} == {4}  # fmt: skip
    assert "repaired" in idp("generate", f"record={run}", "prompt=The bridge", "max_new_tokens=2")


def test_a_researcher_s_own_task_becomes_a_table_of_a_paper(idp, bridges, tmp_path):
    """Three seeds, her own task, every run compared, and LaTeX that compiles."""
    write_task(tmp_path / "tasks")
    own = ("task=custom", "task.names=[written,arc_easy]", "task.include_path=tasks")
    grid = ("compressor=rtn3", "recovery=none,prompt", "seed=0,1,2", "recovery.length=4")
    idp("run", "-m", "model=tiny_llama", *grid, *own, *SMALL, *bridges)
    assert "6 done" in idp("sweep", "status")
    idp("report", "outputs/runs", "columns=[mean,difference,params]", "names={rtn3: RTN}", "formats=latex,csv")
    table = (tmp_path / "outputs" / "report" / "paper.tex").read_text()
    assert r"\toprule" in table and "RTN" in table
    one, other = sorted((tmp_path / "outputs" / "runs").glob("*prompt*"))[:2]
    assert "arc_easy" in idp("analyze", "compare", str(one), str(other))
    assert "Output written on table.pdf" in compiled(table, tmp_path / "tex")
