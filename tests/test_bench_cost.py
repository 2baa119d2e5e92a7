"""What a study takes: every token that a run passes through a model is counted, and shared work once."""

import functools
import re
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from idp.composed import configs
from idp.finished import find_run
from idp.models import byte_tokenizer, model_folder
from idp.plan import assumed, cost, peaks
from idp.plan.assumed import of_run
from idp.plan.cost import cells_of, main
from idp.plan.machine import counted as count_documents
from idp.plan.machine import machine_of
from idp.plan.workload import COMPRESS, FORWARD, HELDOUT, JUDGE, MEASURE, PERPLEXITY, TRAIN, Machine
from idp.usage import options

MACHINE = Machine(
    {"arc_easy": 30.0, "lambada_openai": 80.0}, {"arc_easy": 2000, "lambada_openai": 5000}, 1e11, 2e11, ""
)
ROOT = Path(__file__).parent.parent
PEAKS = peaks.peaks
PAGE = (ROOT / "experiments" / "README.md").read_text().partition("## On a larger model")[2]
# By their experiments.
COMMANDS = {
    found[1]: found[0] for found in re.finditer(r"^python -m idp\.run .*\+experiment=(\w+).*$", PAGE, flags=re.M)
}


@functools.cache
def counted(experiment):
    """How often the runs of an experiment do what takes long, and all that they do."""
    found = cells_of_experiment(experiment)
    models = {config.model.name: config.model for config in found}
    sizes = {name: assumed.of_config(model, None, None) for name, model in models.items()}
    works = [work for cell in cells_of(found, MACHINE, sizes) for work in cell.works]
    return {what: sum(work.what == what for work in works) for what in (COMPRESS, TRAIN, HELDOUT, MEASURE)}, works


@functools.cache
def cells_of_experiment(experiment):
    """The checked config of each run."""
    return hold_folders(experiment, configs([f"+experiment={experiment}", "budget=paper"], sweep=True, ahead=True))


def hold_folders(experiment, found):
    """The configs; each writes into the experiment's folder and shares the store."""
    found = list(found)
    assert {(config.output, config.store) for config in found} == {(f"outputs/{experiment}", "outputs/store")}
    return found


def test_the_page_has_commands():
    assert len(COMMANDS) == 7 and set(COMMANDS) < set(options("experiment"))


def of_study(experiment):
    """One worker composes all runs of an experiment, once."""
    return pytest.mark.xdist_group(f"study {experiment}")


@of_study("nine_tasks")
def test_work_that_runs_share_is_counted_once():
    counts, works = counted("nine_tasks")
    # 5 x (prompt, idp, lora) x 3 seeds; dense and 4 compressed, 5 hard prompts, and each prompt of 15 banks alone, of
    # which IDP's own rows are composed: nothing but its prompts goes through the model for them.
    assert counts == {COMPRESS: 4, TRAIN: 45, HELDOUT: 15, MEASURE: 1 + 4 + 5 + 15 + 15 + 15 * (1 + 3)}
    tasks = 30 * 2000 + 80 * 5000
    assert {(work.operations, work.tokens - tasks) for work in works if work.what == MEASURE} == {
        (FORWARD, prompts) for prompts in (0, 25, 100, 100 - tasks)
    }
    text = 30_000 * 2 * 1024
    trained = sorted({work.tokens for work in works if work.what == TRAIN})
    assert trained == [text, text + 30_000 * 25, 3 * text + 30_000 * 100], "lora, prompt, idp"
    assert {work.tokens for work in works if work.what == JUDGE} >= {301 * 128 * 1024}


@of_study("prompt_length")
def test_perplexity_is_that_of_the_literature():
    _, works = counted("prompt_length")
    text = [work.tokens for work in works if work.what == PERPLEXITY and work.tokens]
    assert set(text) == {512 * 1023}, "256 x 2048 tokens in windows of 1024, whose first token predicts"
    # Dense and compressed once, every prompt of 6 lengths and 3 seeds.
    assert len(text) == 2 + 18


@of_study("bank_size_and_selector")
def test_selectors_share_a_bank():
    counts, _ = counted("bank_size_and_selector")
    # 9 banks; 7 selectors of each, of which the oracle runs nothing of its own, and 2, 3 or 6 prompts alone.
    assert counts == {COMPRESS: 1, TRAIN: 9, HELDOUT: 9, MEASURE: 2 + 9 * 6 + 3 * (2 + 3 + 6)}


@pytest.mark.parametrize("experiment", [name for name in options("experiment") if name not in COMMANDS])
def test_every_other_study_has_a_cost(experiment):
    counts, _ = counted(experiment)
    assert counts[MEASURE] > 1


RUNS = {
    "none": ("recovery=none", "compressor=gptq4"),
    "prompt": ("recovery=prompt", "recovery.length=5", "compressor=rtn4", "latency=default", "latency.rounds=2"),
    "idp": ("recovery=idp", "recovery.lengths=[3,7]", "compressor=rtn4", "recovery/selector=likelihood"),
    "router": (
        "recovery=idp",
        "recovery.lengths=[3,7]",
        "compressor=rtn4",
        "recovery/selector=router",
        "recovery.selector.tasks=[copa,openbookqa]",
        "recovery.selector.documents=9",
    ),
    "lowrank": ("recovery=lowrank", "recovery.samples=5", "compressor=rtn4"),
    "lora_all": ("recovery=lora_all", "compressor=rtn4"),
    "lora": ("recovery=lora", "recovery.training.objective=distill", "compressor=rtn4"),
}


@pytest.mark.parametrize("run", RUNS)
def test_every_token_that_passes_a_model_is_counted(run, compose, bridges, tmp_path, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    from idp import pipeline
    from idp.plan.preflight import preflight

    words = ["model=tiny_llama", "model.device=cpu", "compressor.quantization.group_size=32", "task=commonsense"]
    words += [*RUNS[run], *bridges, "budget=smoke", "tracker=none", "latency.batch_sizes=[1,2]"]
    config = compose(*words, "latency.input_tokens=[8]", "latency.new_tokens=3", f"output={tmp_path}")
    preflight(config).hold()  # other models, of a layer or two
    passed, forward = [], LlamaDecoderLayer.forward

    def counting(layer, hidden_states, *rest, **named):
        if not hidden_states.is_meta:
            passed.append(hidden_states.shape[:-1].numel())
        return forward(layer, hidden_states, *rest, **named)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", counting)
    pipeline.run(config)
    monkeypatch.undo()
    machine = count_documents([config], byte_tokenizer())
    foreseen = sum(work.tokens for work in of_run(config, machine))
    assert sum(passed) / 2 == pytest.approx(foreseen, rel=0.02), "of two layers"


def test_a_record_gives_tokens_speed_and_hours(finished_run, capsys):
    folder, record = finished_run("compressor=gptq3", "recovery=prompt", "baselines=true")
    run = find_run(folder)
    machine = machine_of(run, str(folder))
    tokenizer = AutoTokenizer.from_pretrained(model_folder(run.product("load")))
    assert machine.tokens["arc_easy"] > machine.contexts["arc_easy"] > len(tokenizer.encode("What"))
    assert machine.documents["arc_easy"] == record["idp"]["data"]["arc_easy"]["documents_in_split"]
    budget = record["idp"]["config"]["recovery"]["training"]
    assert machine.training > budget["steps"] * budget["batch_size"] * budget["sequence_length"] * 4  # weights, seconds
    given = [f"record={folder}", "experiment=prompt_length", "budget=smoke"]
    hours = []
    for parameters in ("1e12", "2e12"):
        main([*given, f"parameters={parameters}", "tflops=0.001"])
        said = capsys.readouterr().out
        assert "0.001 trillion operations a second" in said
        hours.append(float(said.strip().splitlines()[-1].split("|")[-2].replace(",", "")))
    assert hours[1] == pytest.approx(2 * hours[0], rel=0.01) and hours[0] > 0
    main([*given, "parameters=1e9"])
    assert "hours: on the record's machine" in capsys.readouterr().out


def test_what_is_wrong_is_said(finished_run):
    folder, _ = finished_run("compressor=gptq3", "recovery=prompt", "baselines=true")
    given = [f"record={folder}", "experiment=prompt_length"]
    with pytest.raises(SystemExit, match="parameters=big: give a number above 0, such as 6.7e9"):
        main([*given, "parameters=big"])
    with pytest.raises(SystemExit, match="there is none; choose one of attention_regimes"):
        main([f"record={folder}", "experiment=ten_tasks", "parameters=1e9"])
    with pytest.raises(SystemExit, match="tflops=0: give a number above 0"):
        main([*given, "parameters=1e9", "tflops=0"])
    with pytest.raises(SystemExit, match="budget=huge"):
        main([*given, "parameters=1e9", "budget=huge"])
    with pytest.raises(SystemExit, match="--what: options are experiment="):
        main([*given, "--what"])


def test_packed_weights_and_small_repairs_are_what_a_study_keeps(compose):
    llama = assumed.of_config(compose("model=llama_7b").model, None, None)
    assert llama.parameters == 6_738_415_616 and llama.downloaded

    def kept(*words):
        return assumed.stored(compose("model=llama_7b", "budget=paper", "evaluation.perplexity=[]", *words), llama)

    (gptq3,) = kept("compressor=gptq3").values()
    layers = 6_738_415_616 - 2 * 32000 * 4096 - 65 * 4096
    assert gptq3 == pytest.approx(layers * (3 + (16 + 3) / 128) / 8 + 2 * (6_738_415_616 - layers), rel=0.01)
    (sparse,) = kept("compressor=sparsegpt50").values()
    assert sparse == 2 * 6_738_415_616
    assert list(kept("compressor=none", "recovery=prompt", "recovery.length=100").values()) == [100 * 4096 * 4]
    (lora,) = kept("compressor=none", "recovery=lora").values()
    assert lora == 32 * 2 * 8 * (4096 + 4096) * 4
    assert kept("compressor=none", "recovery=none") == {}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", COMMANDS)
def test_the_commands_for_a_larger_model_have_a_cost(experiment, monkeypatch, capsys):
    import shlex

    command = COMMANDS[experiment]
    monkeypatch.setattr(cost, "composed", lambda *given, **named: hold_folders(experiment, configs(*given, **named)))
    monkeypatch.setattr(cost, "counted", lambda *_: MACHINE)
    whole = "experiment=latency" in command  # the others are of a model of two layers: half a minute for each step
    if not whole:
        monkeypatch.setattr(peaks, "peaks", lambda step: PEAKS(replace(step, layers=2)))
    assumed._peaks.cache_clear()
    main(shlex.split(command)[3:])
    assumed._peaks.cache_clear()
    said = capsys.readouterr().out
    (everything,) = [line for line in said.splitlines() if line.startswith("| all ")]
    hours, disk, peak, least = (float(cell.replace(",", "")) for cell in everything.split("|")[3:-1])
    assert hours > 10 and disk > 3 and 40 > peak >= least > (13 if whole else 1)
    assert "from the hub: llama_7b, 13.5 GB" in said
