"""The cells of a grid: words about a swept group reach those whose choice has the option."""

import pytest

from idp.composed import Composer, _cells, configs, initialized
from idp.errors import UserError
from idp.grid import as_override, set_aside
from idp.overrides import rewritten

TINY = ("model=tiny_llama", "budget=smoke", "task=arc_easy", "tracker=none")


def cells(*words):
    return list(_cells(list(words)))


def test_an_option_reaches_the_cells_that_have_it(capsys):
    found = list(configs([*TINY, "recovery=lowrank,prompt,idp", "recovery.lengths=[4,5]"], sweep=True))
    assert [config.recovery.kind for config in found] == ["lowrank", "prompt", "idp"]
    assert list(found[2].recovery.lengths) == [4, 5]
    said = capsys.readouterr().err
    assert said == "recovery.lengths=[4,5]: no such option, and left out, in recovery=lowrank; recovery=prompt\n"


def test_one_that_all_have_reaches_all_and_nothing_is_said(capsys):
    found = list(configs([*TINY, "recovery=prompt,lora", "recovery.training.steps=3"], sweep=True))
    assert [config.recovery.training.steps for config in found] == [3, 3] and not capsys.readouterr().err


def test_choices_within_a_swept_choice_bring_their_options():
    found = cells(*TINY, "recovery=prompt,idp", "recovery/selector=random", "recovery.selector.seed=3")
    assert found[0][-1] == "recovery=prompt" and found[1][-2:] == [
        "recovery/selector=random",
        "recovery.selector.seed=3",
    ]
    both = cells(
        "recovery=prompt,lora", "compressor=gptq3,wanda50", "compressor.quantization.bits=2", "recovery.rank=4"
    )
    assert [len(cell) for cell in both] == [3, 3, 4, 4]
    with initialized():
        composed = Composer().compose(both[2])
    assert composed.compressor.quantization.bits == 2 and composed.recovery.rank == 4


def test_one_that_no_cell_has_is_refused_and_a_value_that_does_not_fit_as_well():
    with pytest.raises(
        UserError, match=r"^no cell of the sweep takes this: recovery.lengths: there is no such option here"
    ):
        cells(*TINY, "recovery=prompt,lora", "recovery.lengths=[4]")
    with pytest.raises(UserError, match=r"recovery.length=0: must be at least 1"):
        list(configs([*TINY, "recovery=prompt,lora", "recovery.length=0"], sweep=True))


def test_an_experiment_s_own_options_of_what_it_sweeps(capsys):
    found = cells("+experiment=demo", *TINY)
    assert [[word for word in cell if word.startswith("recovery.")] for cell in found] == [
        [],
        [],
        ["recovery.lengths=[25,50]", "recovery.fit.blocks=16"],
    ]
    assert rewritten(["-m", "+experiment=demo"]) == ["-m", "+experiment=demo", "hydra/sweeper=grid"]
    assert not capsys.readouterr().err
    given = cells("+experiment=demo", *TINY, "recovery.lengths=[4,5]")
    assert given[2][-2:] == ["recovery.fit.blocks=16", "recovery.lengths=[4,5]"]
    assert "[4,5]: no such option" in capsys.readouterr().err
    nine = ["-m", "+experiment=nine_tasks"]
    assert rewritten(nine) == nine, "Hydra's own sweeper, where every cell takes every word"


def test_values_of_an_option_that_only_some_choices_have(capsys):
    found = cells(*TINY, "recovery=prompt,lora", "recovery.length=4,5", "seed=0,1")
    assert [[word for word in cell if word not in TINY] for cell in found] == [
        ["recovery=prompt", "seed=0", "recovery.length=4"],
        ["recovery=prompt", "seed=0", "recovery.length=5"],
        ["recovery=prompt", "seed=1", "recovery.length=4"],
        ["recovery=prompt", "seed=1", "recovery.length=5"],
        ["recovery=lora", "seed=0"],
        ["recovery=lora", "seed=1"],
    ]
    said = capsys.readouterr().err
    assert said == "recovery.length=4,5: no such option, and left out, in recovery=lora seed=0; recovery=lora seed=1\n"
    configured = list(configs([*TINY, "recovery=prompt,lora", "recovery.length=4,5"], sweep=True))
    assert [getattr(config.recovery, "length", None) for config in configured] == [4, 5, None]


def test_choices_and_values_within_a_swept_choice():
    words = ("recovery=prompt,idp", "recovery/selector=attention,random", "recovery.selector.seed=1,2")
    found = cells(*TINY, *words, "recovery.selector.layer=1")
    assert [[word.removeprefix("recovery") for word in cell if "recovery" in word] for cell in found] == [
        ["=prompt"],
        ["=idp", "/selector=attention", ".selector.layer=1"],
        ["=idp", "/selector=random", ".selector.seed=1"],
        ["=idp", "/selector=random", ".selector.seed=2"],
    ]


def test_where_all_have_it_the_order_is_hydra_s():
    words = ["-m", "recovery=prompt,ptune", "recovery.length=4,5", "seed=0,1"]
    assert rewritten(words) == [*words, "hydra/sweeper=grid"]
    found = cells(*TINY, *words[1:])
    assert [cell[-3:] for cell in found[:3]] == [
        ["recovery=prompt", "recovery.length=4", "seed=0"],
        ["recovery=prompt", "recovery.length=4", "seed=1"],
        ["recovery=prompt", "recovery.length=5", "seed=0"],
    ]
    with pytest.raises(UserError, match=r"^no cell of the sweep takes this: recovery.lengths: there is no such option"):
        cells(*TINY, "recovery=prompt,lora", "recovery.lengths=[4],[5]")


def test_an_experiment_s_grid_counts_and_several_experiments_are_refused():
    found = cells("+experiment=recoveries", "recovery.lengths=[4,5]", "seed=0")
    assert {cell[-1] for cell in found if "recovery=idp" in cell} == {"recovery.lengths=[4,5]"}
    assert not any("lengths" in word for cell in found if "recovery=idp" not in cell for word in cell)
    for words in ("+experiment=nine_tasks,recoveries", "+experiment=glob(*)"):
        with pytest.raises(UserError, match="each has a grid of its own, and a sweep takes one"):
            cells(words)


def test_what_is_set_aside_comes_back_as_it_was():
    words = ["recovery=prompt,lora", "X", "seed=1", "+recovery.new=1", "task.fewshot=2"]
    words[1] = "recovery.init_text='a, \\'b\\' c'"
    with initialized() as loader:
        shared, aside = set_aside(words, loader)
        assert aside == [words[1]] and shared == [words[0], *words[2:]]
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (override,) = OverridesParser.create().parse_overrides([as_override(aside)])
    assert override.value() == aside


def test_command_lines_of_other_kinds_stay_as_they_are():
    for words in (
        ["recovery=prompt", "recovery.length=4"],
        ["-m", "seed=0,1", "recovery=prompt", "recovery.length=4"],
        ["-m", "recovery=prompt,lora", "seed=0"],
        ["-m", "hydra/sweeper=optuna", "recovery=choice(prompt,ptune)", "recovery.length=4"],
    ):
        assert rewritten(words) == words
    words = rewritten(["-m", "recovery=prompt,lora", "recovery.length=4"])
    assert words[:3] == ["-m", "recovery=prompt,lora", "hydra/sweeper=grid"] and len(words) == 4


def test_a_sweep_runs_each_cell_with_what_it_has(idp_run, shared_store, tmp_path, monkeypatch):
    """From the command line; given again it is the same sweep, and its list has the command as it was typed."""
    import json

    monkeypatch.chdir(tmp_path)
    words = ("-m", *TINY, "baselines=false", "evaluation.perplexity=[]", "compressor=rtn4", shared_store)
    words += ("recovery=none,prompt", "recovery.length=4")
    for _ in range(2):
        done = idp_run(*words)
    assert "recovery.length=4: no such option, and left out, in" in done.stderr
    (listing,) = tmp_path.rglob("sweep.json")
    written = json.loads(listing.read_text())
    assert "recovery.length=4" in written["command"] and not any("where_known" in word for word in written["command"])
    assert [("recovery.length=4" in cell["overrides"]) for cell in written["cells"]] == [False, True]
    records = [json.loads(file.read_text()) for file in tmp_path.rglob("runs/*/record.json")]
    assert sorted(record["idp"]["parameters"]["added"] for record in records) == [0, 4 * 64]


def test_a_prompt_s_length_is_no_length_of_calibration_text(capsys):
    """An option that two choices call alike would be set in both."""
    grid = [*TINY, "recovery=lowrank,lora,lora_all,prompt", "recovery.length=12"]
    found = list(configs(grid, sweep=True))
    assert [config.recovery.sample_length for config in found[:3]] == [None] * 3 and found[3].recovery.length == 12
    assert "recovery.length=12: no such option, and left out, in recovery=lowrank; " in capsys.readouterr().err
