"""Which models are runs of one row, and what tells rows apart: seeds of training, of calibration, and all else."""

import csv
import io

import pytest

from idp.analyze.cells import cells_of, unrepaired_of
from idp.records.collect import collect
from idp.report.formats import comma_separated
from idp.report.nine_tasks import score_table
from idp.report.view import views
from tests.report.made import DATA, PROMPT, key_of, seeds_by_repair


def rows_of(tmp_path):
    (view,) = views(collect([tmp_path / "runs"]))
    return view, [(row.name, row.seeds_label, row.runs) for row in view.rows]


def test_a_sweep_over_the_training_seed_has_one_compressed_model(record, tmp_path):
    seeds_by_repair(record, lambda seed: 0)
    _, rows = rows_of(tmp_path)
    assert rows == [("dense", "", 1), ("gptq3", "", 1), ("gptq3 + prompt", "0, 1, 2", 3)]


def test_an_older_sweep_that_calibrated_with_its_seeds_is_as_many_rows(record, tmp_path):
    seeds_by_repair(record, lambda seed: seed)
    view, rows = rows_of(tmp_path)
    assert rows == [
        ("dense", "", 1),
        ("gptq3", "calibration 0, 1, 2", 3),
        ("gptq3 + prompt", "0, 1, 2; calibration 0, 1, 2", 3),
    ]
    dense, compressed, repaired = view.rows
    assert (compressed.parent, repaired.parent) == (dense.id, compressed.id)
    assert compressed.spread(list(DATA)) > 0 and repaired.spread(list(DATA)) > 0
    every = cells_of(view.found, view.setting)
    assert unrepaired_of(every, every[2]) is every[1], "the analysis has the same rows"


def test_the_calibration_seed_alone_is_a_seed_too(record, tmp_path):
    for seed in (3, 1):
        record(f"prompt-{seed}", calibration=seed, recovery=PROMPT)
    _, rows = rows_of(tmp_path)
    assert rows[1:] == [("gptq3", "calibration 1, 3", 2), ("gptq3 + prompt", "0; calibration 1, 3", 2)]


def test_repairs_of_some_of_the_calibrations_have_their_model_as_parent(record, tmp_path):
    record("none-0", calibration=0)
    record("prompt-1", calibration=1, recovery=PROMPT)
    view, rows = rows_of(tmp_path)
    assert rows[1:] == [("gptq3", "calibration 0, 1", 2), ("gptq3 + prompt", "0", 1)]
    assert view.rows[2].parent == view.rows[1].id


def test_documents_are_counted_on_the_model_that_a_repair_was_made_from(record, tmp_path):
    import numpy as np

    from idp.report.behaviours import count

    def broken(documents):
        def right(model, task):
            scores = np.ones(40)
            scores[:documents] = model != "compressed"
            return scores

        return right

    record("none-0", calibration=0, right=broken(3))
    record("prompt-1", calibration=1, recovery=PROMPT, right=broken(11))
    view, rows = rows_of(tmp_path)
    assert rows[1][2] == 2 and count(view, view.rows[2])["broken"] == 11 * len(DATA)


def test_the_seed_of_a_random_selector_is_a_seed(record, tmp_path):
    for seed in (0, 1):
        recovery = {"kind": "idp", "selector": {"kind": "random", "seed": seed}}
        record(f"idp-{seed}", seed=seed, recovery=recovery)
    record("idp-2", seed=1, recovery={"kind": "idp", "selector": {"kind": "random", "seed": 7}})
    _, rows = rows_of(tmp_path)
    assert rows[2:] == [("gptq3 + idp", "0, 1; selector 0, 1, 7", 3)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: config["compressor"]["calibration"].update(samples=16), "gptq3 samples=16"),
        (lambda config: config["compressor"]["quantization"].update(group_size=32), "gptq3 group_size=32"),
        (lambda config: config["corpus"].update(name="c4"), "gptq3 corpus=c4"),
        (lambda config: config["corpus"].update(path="other.txt"), "gptq3 path=other.txt"),
    ],
)
def test_rows_that_differ_in_anything_show_it(change, said, record, tmp_path):
    seeds_by_repair(record, lambda seed: seed)
    record("none-9", seed=9, calibration=9, keys=["other"], change=lambda record: change(record["idp"]["config"]))
    _, rows = rows_of(tmp_path)
    assert len(rows) == 4 and len({name for name, _, _ in rows}) == 4
    assert [(name, runs) for name, _, runs in rows if said in name] == [(said, 1)]
    assert [runs for name, _, runs in rows if name.startswith("gptq3") and said not in name] == [3, 3]


def test_products_that_no_config_tells_apart_are_told_apart_by_their_keys(record, tmp_path):
    seeds_by_repair(record, lambda seed: 0)
    record("later", keys=["another version"], recovery=PROMPT)
    _, rows = rows_of(tmp_path)
    one, other = (key_of(["gptq3", 0, None, *more])[:8] for more in ((), ("another version",)))
    assert {name: runs for name, _, runs in rows} == {
        "dense": 1,
        f"gptq3 product={one}": 1,
        f"gptq3 product={one} + prompt": 3,
        f"gptq3 product={other}": 1,
        f"gptq3 product={other} + prompt": 1,
    }


def test_repairs_of_one_config_and_seed_are_never_averaged(record, tmp_path):
    def newer(record):
        record["idp"]["stages"]["recover"]["key"] = "f" * 64

    record("first", recovery=PROMPT)
    record("second", recovery=PROMPT, change=newer)
    _, rows = rows_of(tmp_path)
    names = [name for name, _, _ in rows[2:]]
    assert len(names) == 2 and "gptq3 + prompt product=ffffffff" in names


def test_runs_and_deviation_stand_in_every_format(record, tmp_path):
    seeds_by_repair(record, lambda seed: seed)
    view, _ = rows_of(tmp_path)
    header, _, compressed, _ = csv.reader(io.StringIO(comma_separated([score_table(view)])))
    said = dict(zip(header, compressed, strict=True))
    assert said["runs"] == "3" and float(said["arc_easy deviation"]) == pytest.approx(view.rows[1].spread(["arc_easy"]))


def test_the_terminal_tells_runs_of_several_calibrations_apart(record, tmp_path):
    from idp.report.summary import sweep_table

    for seed in (0, 1):
        record(f"none-{seed}", seed=seed, calibration=seed)
    record("prompt-1", seed=1, calibration=1, recovery=PROMPT)
    lines = [
        [cell.strip() for cell in line.split("|")] for line in sweep_table(collect([tmp_path / "runs"])).splitlines()
    ]
    place = lines[0].index("seed")
    assert [line[place] for line in lines[2:]] == ["calibration 0", "calibration 1", "1"]
