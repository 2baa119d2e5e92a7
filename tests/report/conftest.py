"""A real run of the tiny model, and copies of it with something changed: a sweep without its cost."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.report.made import recorder

REPAIRED = ("compressor=gptq3", "recovery=idp", "recovery.lengths=[3,5]", "baselines=true")


@pytest.fixture
def real(finished_run):
    """A finished run with all three models: its folder and its record."""
    return finished_run(*REPAIRED)


@pytest.fixture
def vary(real, tmp_path):
    """`vary(name, change, ...)`: a copy of the real run under `tmp_path/runs`, its record changed; the run's folder.

    `change(record)` edits the record in place, `outcomes(table)` returns another table of documents.
    """
    folder, record = real
    made: list[Path] = []

    def varied(name, change=lambda record: None, outcomes=None) -> Path:
        from pyarrow import parquet

        place = tmp_path / "runs" / name
        place.mkdir(parents=True)
        changed = copy.deepcopy(record)
        changed["idp"]["name"] = name
        change(changed)
        (place / "record.json").write_text(json.dumps(changed))
        if outcomes is None:
            shutil.copy(folder / "samples.parquet", place)
        else:
            parquet.write_table(outcomes(parquet.read_table(folder / "samples.parquet")), place / "samples.parquet")
        made.append(place)
        for age, each in enumerate(reversed(made)):  # the one made last is the newest
            os.utime(each / "record.json", (1e9 - age, 1e9 - age))
        return place

    return varied


@pytest.fixture
def runs(tmp_path):
    """The folder of those copies."""
    return tmp_path / "runs"


@pytest.fixture
def record(runs):
    """`record(name, ...)`: see `tests.report.made.recorder`."""
    return recorder(runs)


HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


def of_seed(seed):
    """A change of a record: the same repair trained with another seed."""

    def change(record):
        record["idp"]["config"]["seed"] = seed
        record["idp"]["stages"]["recover"]["key"] = str(seed) * 64
        record["results"]["arc_easy"]["acc,none"] += seed / 8

    return change


def of_compressor(name):
    """A change of a record: the same repair of another compressed model."""

    def change(record):
        record["idp"]["compressor"] = name
        record["idp"]["stages"]["compress"]["key"] = name.ljust(64, "0")
        record["idp"]["stages"]["recover"]["key"] = name.ljust(64, "1")
        record["idp"]["weights"] |= {"bits_per_weight": 2.5, "sparsity": 0.25}

    return change


def hostile(table):
    """Documents whose texts are markup that would run if they were not set as text."""
    import pyarrow as arrow

    for name in ("context", "target"):
        texts = [f"{HOSTILE} {text}" for text in table[name].to_pylist()]
        table = table.set_column(table.column_names.index(name), name, arrow.array(texts))
    choices = [[f"{HOSTILE} {choice}" for choice in each] for each in table["choices"].to_pylist()]
    return table.set_column(table.column_names.index("choices"), "choices", arrow.array(choices))


@pytest.fixture
def sweep(vary, runs):
    """A folder of runs: two compressors, two seeds of one repair, hostile texts, a failed run."""
    vary("first", of_seed(0), outcomes=hostile)
    vary("second", of_seed(1), outcomes=hostile)
    vary("third", of_compressor("rtn3"), outcomes=hostile)
    name = "tiny_llama-gptq2-lora-smoke-0123456789ab"
    (runs / name).mkdir()
    status = {"name": name, "state": "failed", "stage": "recover", "error": f"no room {HOSTILE}"}
    (runs / name / "status.json").write_text(json.dumps(status))
    return runs
