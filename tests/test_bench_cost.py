"""What a study would take: shared work counted once, and hours that follow from a record."""

import pytest
from transformers import AutoTokenizer

from idp.bench.cost import COMPRESS, FORWARD, HELDOUT, MEASURE, TRAIN, Machine, machine_of, main, of_experiment
from idp.finished import find
from idp.models import model_folder
from idp.usage import options

MACHINE = Machine(
    {"arc_easy": 30.0, "lambada_openai": 80.0}, {"arc_easy": 2000, "lambada_openai": 5000}, 1e11, 2e11, ""
)


def counted(experiment):
    works = list(of_experiment(experiment, "paper", MACHINE))
    return {what: sum(work.what == what for work in works) for what in (COMPRESS, TRAIN, HELDOUT, MEASURE)}, works


def test_work_that_runs_share_is_counted_once():
    counts, works = counted("nine_tasks")
    # 5 x (prompt, idp, lora) x 3 seeds; dense and 4 compressed, 5 hard prompts, and each prompt of 15 banks alone.
    assert counts == {COMPRESS: 4, TRAIN: 45, HELDOUT: 15, MEASURE: 1 + 4 + 5 + 15 + 15 + 15 * (1 + 3)}
    tasks = 30 * 2000 + 80 * 5000
    assert {(work.operations, work.tokens) for work in works if work.what == MEASURE} == {(FORWARD, tasks)}
    trained = sorted({work.tokens for work in works if work.what == TRAIN})
    assert trained[1] == 3 * trained[0] == 3 * (30000 * 2 * 1024 + 301 * 128 * 1024 / 2)


def test_selectors_share_a_bank():
    counts, _ = counted("bank_size_and_selector")
    # 9 banks; 7 selectors of each, of which the oracle runs nothing of its own, and 2, 3 or 6 prompts alone.
    assert counts == {COMPRESS: 1, TRAIN: 9, HELDOUT: 9, MEASURE: 2 + 9 * 6 + 3 * (2 + 3 + 6)}


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_study_has_a_cost(experiment):
    counts, _ = counted(experiment)
    assert counts[MEASURE] > 1


def test_a_record_gives_tokens_speed_and_hours(finished_run, capsys):
    folder, record = finished_run("compressor=gptq3", "recovery=prompt", "baselines=true")
    run = find(folder)
    machine = machine_of(run, str(folder))
    tokenizer = AutoTokenizer.from_pretrained(model_folder(run.product("load")))
    assert machine.tokens["arc_easy"] > len(tokenizer.encode("What"))
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
