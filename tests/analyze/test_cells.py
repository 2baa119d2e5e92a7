"""Which runs are one cell, what it is called, and what may be compared."""

import numpy as np
import pytest

from idp.analyze.cells import cells_of, dense_of, of_the_input, pair, repairs, together, unrepaired_of
from tests.analyze.conftest import IDP, LORA, PROMPT


def names(study):
    return {cell.name: len(cell.members) for cell in cells_of(study.collection, study.setting)}


def test_seeds_are_runs_of_one_cell(study, draw):
    right = {"t": draw(0.5)}
    study.add("dense", right)
    study.add("compressed", right, "gptq3")
    for seed in (2, 0, 1):
        study.add("repaired", right, "gptq3", IDP, seed=seed)
        study.add("repaired", right, "gptq3", PROMPT, seed=seed)
    study.add("repaired", right, "gptq3", PROMPT | {"length": 100})
    study.add("repaired", right, "gptq3", LORA)
    study.add("repaired", right, "gptq4", LORA)
    study.add("repaired", right, recovery=LORA)
    study.add("repaired", right, "gptq3", IDP | {"selector": {"kind": "oracle"}}, uses_labels=True)
    assert names(study) == {
        "dense": 1,
        "gptq3": 1,
        "gptq3 + idp (attention)": 3,
        "gptq3 + prompt length=25": 3,
        "gptq3 + prompt length=100": 1,
        "gptq3 + lora": 1,
        "gptq4 + lora": 1,
        "dense + lora": 1,
    }
    cells = {cell.name: cell for cell in cells_of(study.collection, study.setting)}
    every = list(cells.values())
    assert [run.seed for run in cells["gptq3 + prompt length=25"].members] == [0, 1, 2]
    assert dense_of(every, cells["gptq3 + lora"]) is cells["dense"]
    assert unrepaired_of(every, cells["gptq3 + lora"]) is cells["gptq3"]
    assert unrepaired_of(every, cells["dense + lora"]) is cells["dense"]
    assert unrepaired_of(every, cells["gptq4 + lora"]) is None
    found = [cell.name for cell in repairs(every, "idp", "lora")]
    assert found == ["dense + lora", "gptq3 + idp (attention)", "gptq3 + lora", "gptq4 + lora"]


def test_what_a_name_leaves_out_is_told_apart(study, draw):
    right = {"t": draw(0.5)}
    study.add("repaired", right, "gptq3", PROMPT | {"training": {"learning_rate": 0.1}})
    study.add("repaired", right, "gptq3", PROMPT | {"training": {"learning_rate": 0.2}})
    calibration = {"corpus": None, "length": 128, "seed": 0}
    for samples in (8, 128):
        study.add(
            "compressed",
            right,
            "gptq4",
            base=f"{samples}",
            compression={"calibration": calibration | {"samples": samples}},
        )
    assert list(names(study)) == [
        "gptq3 + prompt learning_rate=0.1",
        "gptq3 + prompt learning_rate=0.2",
        "gptq4 samples=8",
        "gptq4 samples=128",
    ]


def test_a_kind_says_what_its_own_options_would(study, draw):
    """Banks of two kinds are told apart by the kind alone, two of one kind by what differs in them."""
    right = {"t": draw(0.5)}
    for bank in ({"kind": "independent"}, {"kind": "cluster", "blocks": 8}, {"kind": "cluster", "blocks": 64}):
        study.add("repaired", right, "gptq3", IDP | {"bank": bank})
    assert list(names(study)) == [
        "gptq3 + idp (attention) bank=independent",
        "gptq3 + idp (attention) bank=cluster blocks=8",
        "gptq3 + idp (attention) bank=cluster blocks=64",
    ]


def test_whether_prompts_were_measured_alone_makes_no_other_model(study, draw):
    for seed, controls in ((0, True), (1, False), (2, False)):
        study.add("repaired", {"t": draw(0.5, seed=seed)}, "gptq3", IDP | {"controls": controls}, seed=seed)
    (cell,) = cells_of(study.collection, study.setting)
    assert cell.name == "gptq3 + idp (attention)" and cell.seeds == [0, 1, 2]


def test_transfers_of_several_seeds_are_one_cell(study, draw):
    for seed in (0, 1):
        origin = {
            "kind": "prompt",
            "compressor": "gptq3",
            "corpus": "c4",
            "seed": seed,
            "from": f"run-{seed}",
            "key": f"{seed}",
        }
        study.add("repaired", {"t": draw(0.5)}, "gptq4", {"kind": "transfer", "from": f"run-{seed}"}, transfer=origin)
    assert names(study) == {"gptq4 + transfer of prompt (gptq3, c4)": 2}


def test_only_the_same_documents_are_compared(study, draw):
    study.add("dense", {"a": draw(0.5, 40), "b": draw(0.5, 40), "c": draw(0.5, 40)})
    other = {"a": draw(0.25, 40, 1), "b": draw(0.5, 40), "d": draw(0.5, 40)}
    study.add("compressed", other, "gptq3", doc_ids={"b": list(range(1, 41))})
    dense, compressed = cells_of(study.collection, study.setting)
    scores, left_out = together([dense, compressed])
    assert list(scores) == ["a"] and left_out == ["b", "c", "d"]
    assert [table.shape for table in scores["a"]] == [(1, 40), (1, 40)]
    assert scores["a"][1].mean() == pytest.approx(0.25)


def test_less_may_be_better(study, draw):
    from dataclasses import replace

    model = study.add("dense", {"a": draw(0.25)})
    model.tasks["a"] = replace(model.tasks["a"], higher_is_better=False)
    [cell] = cells_of(study.collection, study.setting)
    assert np.mean(pair(cell, cell)[0]["a"][0]) == pytest.approx(-0.25)


def test_what_a_repair_is_made_of_decides_and_not_its_name(study, draw):
    """What records say of a recovery of the user's own; older records are known by the kinds there were."""
    right = {"t": draw(0.5)}
    mine = {"kind": "mine"}
    study.add("repaired", right, "gptq3", mine, repair={"method": "prompt", "prompts": [6, 7], "adapter": False})
    study.add("repaired", right, "gptq4", mine, repair={"method": "lora", "prompts": [], "adapter": True})
    for kind in (PROMPT, IDP, LORA, IDP | {"kind": "lora_idp"}):
        study.add("repaired", right, "gptq3", kind)
    origin = {"kind": "lora", "compressor": "gptq2", "corpus": "c4", "seed": 0, "from": "run", "key": "k"}
    study.add("repaired", right, "gptq3", {"kind": "transfer"}, transfer=origin)
    study.add("repaired", right, "gptq3", {"kind": "transfer"}, transfer=origin | {"kind": "prompt"})
    cells = cells_of(study.collection, study.setting)
    assert {cell.first.recovery for cell in of_the_input(cells)} == {"mine", "prompt", "idp"}
    assert {cell.first.recovery for cell in repairs(cells, "lora")} == {"mine", "lora"}
    assert {cell.first.recovery for cell in repairs(cells, "prompt")} == {"mine", "prompt"}
    adapters = {cell.first.recovery for cell in cells if cell.first.adapter}
    assert adapters == {"mine", "lora", "lora_idp", "transfer"}
    lengths = {cell.first.recovery: cell.first.prompt_lengths for cell in of_the_input(cells)}
    assert lengths == {"mine": [6, 7], "prompt": [25], "idp": [25, 25, 50]}
