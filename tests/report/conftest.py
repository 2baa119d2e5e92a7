"""A real run of the tiny model, and copies of it with something changed: a sweep without its cost."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path

import pytest

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
