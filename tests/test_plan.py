"""The plan of a run: its keys are those of the products made afterwards, and nothing is computed for it."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from idp import models, pipeline
from idp.errors import UserError
from idp.models.described import described
from idp.models.gguf import model as ggufs
from idp.plan import command, estimate
from idp.plan.preflight import preflight
from idp.plan.refusals import check_latency
from idp.store import Store
from tests import ggufs as writing

# Compressors and recoveries, all in one store: what one run makes is what the next one reuses.
RUNS = {
    "none": ("compressor=none", "recovery=none"),
    "idp": ("compressor=gptq3", "recovery=idp", "latency=default", "latency.rounds=2", "latency.batch_sizes=[1]"),
    "best": ("compressor=gptq3", "recovery=idp", "recovery/selector=fixed", "recovery.selector.prompt=best"),
    "oracle": ("compressor=gptq3", "recovery=idp", "recovery/selector=oracle"),
    "cluster": ("compressor=rtn4", "recovery=idp", "recovery/bank=cluster", "recovery/selector=nearest"),
    "specialists": ("compressor=rtn4", "recovery=idp", "recovery/bank=specialists", "recovery.controls=false"),
    "empty": ("compressor=gptq3", "recovery=idp", "recovery.empty_prompt=true", "recovery/selector=likelihood"),
    "lora": ("compressor=sparsegpt50", "recovery=lora"),
    "lowrank": ("compressor=gptq3", "recovery=lowrank", "recovery.samples=3"),
    "lora_all": ("compressor=gptq3", "recovery=lora_all"),
    "masked_lora": ("compressor=magnitude50", "recovery=masked_lora"),
    "lora_idp": ("compressor=wanda50", "recovery=lora_idp", "recovery.training.objective=distill"),
    "prefix": ("compressor=awq4", "recovery=prefix", "recovery.storage.bits=8"),
    "ptune": ("compressor=magnitude50", "recovery=ptune", "evaluation.fidelity=false"),
    "intactkv": ("compressor=rtn4", "recovery=intactkv", "baselines=false"),
    "cartridge": ("compressor=rtn4", "recovery=cartridge", "baselines=false"),
    "gated_prefix": ("compressor=rtn4", "recovery=gated_prefix", "baselines=false"),
    "cached": (
        "compressor=rtn4",
        "recovery=prompt",
        "recovery.training.objective=distill",
        "recovery.training.teacher=cached",
    ),
    "hard_prompt": ("compressor=magnitude50", "recovery=hard_prompt", "baselines=false"),
}
SMALL = ("model=tiny_llama", "model.device=cpu", "task=arc_easy", "task.documents=6", "budget=smoke", "tracker=none")
SMALL += ("compressor.calibration.samples=4", "latency.input_tokens=[8]", "latency.new_tokens=2")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("plans")


@pytest.fixture(scope="module")
def planned_run(compose, bridges, output):
    """`planned_run(name)`: the config of a run of `RUNS`."""

    def config(name, *more):
        lengths = ("recovery.lengths=[3,5]",) if "idp" in str(RUNS[name]) else ()
        return compose(*SMALL, *bridges, *RUNS[name], *lengths, *more, f"output={output}")

    return config


def products(store):
    """Stage and key of all that is in a store."""
    places = Path(store).glob("*/*/manifest.json")
    return {(place.parts[-3], place.parts[-2]) for place in places if "." not in place.parts[-2]}


def wanted(plan):
    """The same of what a plan says is to be made."""
    return {(step.stage, step.key) for step in plan.steps if not step.reused}


@pytest.mark.parametrize("name", RUNS)
def test_a_plan_has_the_keys_of_what_is_made(name, planned_run):
    config = planned_run(name)
    before = products(config.store)
    plan = preflight(config)
    ahead = wanted(plan)
    assert products(config.store) == before, "nothing is made for a plan"
    pipeline.run(config)
    made = products(config.store) - before
    late = {step.stage for step in plan.steps if step.key is None}
    if name == "best":  # the prompt that is best is known once the selector is fitted
        assert late == {"measure", "fidelity"} and {step.after for step in plan.steps if step.key is None} == {"select"}
    else:
        assert not late
    assert {each for each in made if each[0] not in late} == {each for each in ahead if each[0] not in late}
    assert made or name in ("best", "oracle")

    after = preflight(config)
    assert all(step.reused and step.key for step in after.steps), "and then all of it is reused"
    assert not any(step.works or after.seconds(step) or after.disk(step) for step in after.steps)


@pytest.mark.parametrize(
    ("name", "stage"),
    [("idp", "recover"), ("idp", "measure"), ("idp", "reference"), ("idp", "heldout"), ("lora_idp", "compress")],
)
def test_what_is_removed_is_made_anew_and_nothing_else(name, stage, planned_run):
    config = planned_run(name)
    pipeline.run(config)
    lost = next(step for step in preflight(config).steps if step.stage == stage)
    shutil.rmtree(Path(config.store) / stage / lost.key)
    plan = preflight(config)
    assert wanted(plan) == {(stage, lost.key)}
    left = products(config.store)
    pipeline.run(config)
    assert products(config.store) - left == {(stage, lost.key)}


def test_what_is_beneath_a_repair_is_made_only_for_it(planned_run, tmp_path):
    config = planned_run("lora_idp")
    pipeline.run(config)
    nothing_there = preflight(replace(config, store=str(tmp_path / "store")))
    repairs = [step for step in nothing_there.steps if step.stage == "recover"]
    assert [step.label for step in repairs] == ["lora", "lora_idp"]
    folders = [Path(config.store) / "recover" / step.key for step in repairs]
    shutil.rmtree(folders[0])
    assert wanted(preflight(config)) == set(), "the repair is there"
    shutil.rmtree(folders[1])
    assert wanted(preflight(config)) == {("recover", step.key) for step in repairs}


def test_a_transferred_repair_is_planned(planned_run, compose, bridges, output):
    source = planned_run("idp")
    _, record = pipeline.run(source)
    words = ("compressor=rtn3", "recovery=transfer", f"recovery.from={record.parent}", "recovery/selector=likelihood")
    config = compose(*SMALL, *bridges, *words, f"output={output}")
    before, ahead = products(config.store), wanted(preflight(config))
    pipeline.run(config)
    assert products(config.store) - before == ahead


def test_a_plan_opens_no_model_and_computes_nothing(planned_run, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a plan computes nothing")

    monkeypatch.setattr(models, "open_model", never)
    monkeypatch.setattr(models, "load", never)
    monkeypatch.setattr("idp.evaluate.guard.answers", never)
    config = planned_run("idp")
    config = replace(config, store=str(tmp_path / "store"))
    plan = preflight(config)
    assert wanted(plan) and products(config.store) == set()
    assert {step.stage for step in plan.steps} >= {"guard", "load", "compress", "recover", "heldout", "measure"}
    trained = next(step for step in plan.steps if step.stage == "recover")
    assert plan.seconds(trained) > 0 and plan.memory(trained)[0] > plan.size.bytes and plan.disk(trained) > 0
    assert "nothing was timed here yet" in plan.speed.origin


def test_refusals_come_before_anything_is_made(planned_run, tmp_path):
    config = replace(planned_run("idp"), store=str(tmp_path / "store"))
    for changed, said in (
        (replace(config, latency=replace(config.latency, new_tokens=10**6)), "latency.input_tokens=8"),
        (replace(config, evaluation=replace(config.evaluation, perplexity_window=10**5)), "perplexity_window=100000"),
    ):
        with pytest.raises(UserError, match=said):
            preflight(changed)
    assert products(config.store) == set()


def test_latency_that_is_not_asked_for_is_not_refused(planned_run, open_tiny):
    config = planned_run("lora")
    check_latency(replace(config, latency=replace(config.latency, new_tokens=10**6)), open_tiny("llama"))


@pytest.mark.parametrize("kind", ["random", "gguf"])
def test_a_model_is_described_as_it_will_be_loaded(kind, compose, model_folders, tmp_path):
    words = ["model=tiny_llama", "model.device=cpu"]
    if kind == "gguf":
        file = writing.write_model(model_folders("llama"), tmp_path / "tiny.gguf")
        words = ["model=local", f"model.path={file}", "model.name=tiny", "model.device=cpu"]
    model = compose(*words).model
    store, source = Store(tmp_path / "store"), models.find_model(model)
    ahead = described(model, source, store)
    product = models.load(model, source, store)
    loaded = models.model_folder(product)
    names = {file.name for file in ahead.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= names
    assert names | {"model.safetensors"} == {file.name for file in loaded.iterdir()}
    for name in names:
        assert (ahead / name).read_text() == (loaded / name).read_text(), name
    assert models.identity(model, source).key == product.key
    assert kind == "random" or ggufs.config_of(source.place).model_type == "llama"


def plan_of(words, capsys, fails=None):
    if fails is None:
        command.main([*words, "--plan"])
    else:
        with pytest.raises(SystemExit, match=fails):
            command.main([*words, "--plan"])
    return capsys.readouterr().out


def cells_of(table, start):
    """The cells of the first line of a Markdown table that starts so."""
    (line, *_) = [line for line in table.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_the_plan_of_a_run_is_a_table(planned_run, bridges, output, tmp_path, capsys):
    words = [*SMALL, *bridges, "compressor=gptq3", "recovery=prompt", "recovery.length=4"]
    said = plan_of([*words, f"output={tmp_path}"], capsys)
    assert re.search(r"^plan of tiny_llama-gptq3-prompt-smoke-[0-9a-f]{12}$", said, re.MULTILINE)
    headers = ["stage", "product", "key", "is", "seconds", "memory, GB", "card, GB", "disk, GB"]
    assert cells_of(said, "stage") == headers
    _, label, key, state, *numbers = cells_of(said, "recover")
    assert (label, state) == ("prompt", "made") and re.fullmatch("[0-9a-f]{12}", key) and all(numbers)
    assert cells_of(said, "all")[1].startswith("0 of ") and "Nothing was computed" in said
    assert not (tmp_path / "runs").exists()


def test_the_plan_of_a_sweep_counts_what_its_runs_share_once(bridges, tmp_path, capsys):
    words = ["-m", *SMALL, *bridges, "compressor=gptq3", "recovery=prompt,lora"]
    said = plan_of([*words, f"output={tmp_path}", "evaluation.fidelity=false"], capsys)
    first, second = (cells_of(said, f"tiny_llama-gptq3-{kind}") for kind in ("prompt", "lora"))
    # Guard, model, tokenizer, compressed model, repair, dense model, three models on a task and a text.
    assert first[1:4] == ["12", "0", "0"] and second[1:4] == ["3", "9", "0"]
    assert cells_of(said, "all 2 runs")[1:4] == ["15", "9", "0"]


def test_a_run_of_a_sweep_that_is_refused_is_said_beside_the_others(bridges, tmp_path, capsys):
    words = ["-m", *SMALL, *bridges, "compressor=none", "recovery=none", "evaluation.perplexity_window=32,99999"]
    said = plan_of([*words, f"output={tmp_path}"], capsys, fails="1 of 2 runs are refused; .*perplexity_window=99999")
    assert "refused: tiny_llama-none-none-smoke-" in said and "| all 2 runs" in said


def test_a_plan_is_asked_for_with_the_words_of_a_run(monkeypatch, capsys):
    from idp import run

    asked = []
    monkeypatch.setattr(command, "main", asked.append)
    monkeypatch.setattr("sys.argv", ["idp.run", "compressor=gptq4", "--plan"])
    run.main()
    assert asked == [["compressor=gptq4", "--plan"]]
    assert capsys.readouterr().out == ""


def test_kinds_and_yamls_from_outside_are_planned(compose, bridges, tmp_path, capsys):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      recovery.length: 3,4\n"
    )
    words = ["--config-dir", str(tmp_path / "conf"), "-m", "+experiment=mine", *SMALL, *bridges]
    said = plan_of([*words, "compressor=rtn3", "recovery=prompt", f"output={tmp_path}"], capsys)
    assert "| all 2 runs" in said


def test_what_is_no_word_of_a_plan_is_said(capsys):
    plan_of(["--what"], capsys, fails="error: --what: a plan takes overrides of idp.run, and -m for a sweep$")
    plan_of(["compresor=gptq4"], capsys, fails="error: .*compresor")
    plan_of(["--help"], capsys)


def rows_of_the_page():
    """What `idp.bench.memory` counted for each shape and recovery, from the page that shows its table."""
    page = (ROOT / "docs" / "large_models.md").read_text()
    found = re.findall(r"^\| (llama\S+)\s+\| (prompt|lora|distilled prompt)\s+\| ([\d.]+)\s+\| ([\d.]+)", page, re.M)
    assert len(found) == 12
    return found


@pytest.mark.parametrize(("shape", "kind", "weights", "plain"), rows_of_the_page())
def test_the_memory_of_a_training_step_is_about_what_is_counted(shape, kind, weights, plain, compose):
    from idp.plan.shapes import config_of

    recovery = "lora" if kind == "lora" else "prompt"
    words = ["budget=paper", f"recovery={recovery}"]
    words += ["recovery.length=100"] if recovery == "prompt" else []
    words += ["recovery.training.objective=distill"] if kind.startswith("distilled") else []
    size = estimate.Size(round(float(weights) * 2**30 / 2), 2, True, config_of(shape))
    found = estimate.training_bytes(compose(*words).recovery, size)
    assert found / 2**30 == pytest.approx(float(plain), rel=0.05)
