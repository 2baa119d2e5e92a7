"""The record's published form: what is written keeps to it, and another one is refused by name."""

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from idp.errors import UserError
from idp.finished import find_run
from idp.records.collect import collect
from idp.records.record import RECORD, load
from idp.records.schema import SCHEMA_VERSION, IdpBlock, Record, json_schema

PUBLISHED = Path(__file__).parents[2] / "docs" / "record.schema.json"


def test_the_published_schema_is_that_of_the_code():
    assert json.loads(PUBLISHED.read_text()) == json_schema(), "python -m idp.records.schema > docs/record.schema.json"


@pytest.mark.parametrize(
    "options",
    [
        ("compressor=none", "recovery=none"),
        ("compressor=gptq3", "recovery=prompt", "baselines=true"),
        ("compressor=gptq3", "recovery=idp", "recovery.lengths=[3,5]", "baselines=true"),
        (
            "compressor=sparsegpt50_gptq4",
            "recovery=lora_idp",
            "recovery.lengths=[3,5]",
            "latency=default",
            "latency.rounds=2",
        ),
    ],
    ids=lambda options: options[1].removeprefix("recovery="),
)
def test_what_a_run_writes_keeps_to_it(options, finished_run):
    folder, _ = finished_run(*options)
    record = json.loads((folder / RECORD).read_text())
    TypeAdapter(Record).validate_python(record)
    assert not record["idp"].keys() - IdpBlock.__annotations__.keys(), "fields that no type names"


def test_another_schema_is_refused_by_name(finished_run, tmp_path):
    folder, _ = finished_run("compressor=none", "recovery=none")
    other = json.loads((folder / RECORD).read_text())
    other["idp"]["schema_version"] = SCHEMA_VERSION + 1
    file = tmp_path / RECORD
    file.write_text(json.dumps(other))
    for read in (load, find_run, lambda place: collect([place])):
        with pytest.raises(
            UserError, match=f"a record of schema {SCHEMA_VERSION + 1}; this version reads {SCHEMA_VERSION}"
        ):
            read(file)


def test_what_is_no_record_is_one_line(tmp_path):
    file = tmp_path / RECORD
    for text in ("[]", "{}", '{"idp": []}', "{", ""):
        file.write_text(text)
        with pytest.raises(UserError, match="not a record of idp.run") as raised:
            load(file)
        assert "\n" not in str(raised.value)
