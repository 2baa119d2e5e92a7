"""Compressors are kinds: what they say of themselves, and what was written before they were is read as it was meant."""

import pytest

from idp.compress.compressors.external import External
from idp.compress.compressors.pruning_quantization import PruningQuantization
from idp.compress.sizes import claims_of
from idp.config import CALIBRATION, DENSE, WEIGHTS, Claims, Compressor, values_of
from idp.errors import UserError
from idp.records.seeds import calibrated
from idp.registry import code_of, restore

# A YAML of before, by itself: no schema, no kind.
ALONE = """
sparsity: {method: sparsegpt, level: 0.5, pattern: "2:4"}
quantization: {method: gptq, bits: 4, group_size: auto, symmetric: false, actorder: static}
calibration: {corpus: null, samples: 16, length: "${budget.calibration_length}", seed: 3}
path: null
revision: null
"""
OLD = {"calibration", "sparsity", "quantization", "path", "revision"}  # what a record has of a compressor


@pytest.fixture
def yamls(tmp_path):
    """`yamls(name, text)`: a compressor's YAML of one's own, and the override that has it found."""

    def write(name, text):
        folder = tmp_path / "conf" / "compressor"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)
        return f"hydra.searchpath=[file://{tmp_path / 'conf'}]"

    return write


@pytest.mark.parametrize(
    ("words", "needs", "label"),
    [
        (["compressor=none"], set(), "none"),
        (["compressor=rtn4"], {DENSE}, "rtn4"),
        (["compressor=magnitude50"], {DENSE}, "magnitude50"),
        (["compressor=wanda50"], {DENSE, CALIBRATION}, "wanda50"),
        (["compressor=awq4"], {DENSE, CALIBRATION}, "awq4"),
        (["compressor=external", "compressor.path=/models/theirs.gguf"], {WEIGHTS}, "external-theirs"),
        (
            ["compressor=sparsegpt50_gptq4", "compressor.quantization.bits=3", "compressor.sparsity.level=0.6"],
            {DENSE, CALIBRATION},
            "sparsegpt60_gptq3",
        ),
        (
            ["compressor=rtn4", "compressor.sparsity.method=magnitude", "compressor.sparsity.level=0.5"],
            {DENSE},
            "magnitude50_rtn4",
        ),
    ],
    ids=lambda part: part[0].removeprefix("compressor=") if isinstance(part, list) else None,
)
def test_what_a_compressor_says_and_what_a_record_has_of_it(words, needs, label, compose):
    config = compose(*words)
    compressor = config.compressor
    assert (compressor.needs, compressor.label) == (needs, label)
    values = values_of(config)
    assert values["compressor"].keys() == OLD and "plugins" not in values  # as before there were kinds
    assert restore(Compressor, values["compressor"], "compressor") == compressor
    assert code_of(compressor, *compressor.parts.values()) == {}


def test_a_yaml_of_before_is_what_it_was(yamls, compose):
    found = yamls("mine", ALONE)
    compressor = compose(found, "compressor=mine", "compressor.quantization.bits=3", "budget=small").compressor
    assert type(compressor) is PruningQuantization and compressor.label == "sparsegpt_2of4_gptq3"
    assert (compressor.calibration.samples, compressor.calibration.seed) == (16, 3)
    assert compressor.calibration.length == compose("compressor=gptq4", "budget=small").compressor.calibration.length
    yamls("derived", "defaults: [gptq4, _self_]\nquantization: {bits: 2}\n")
    assert compose(found, "compressor=derived").compressor.label == "gptq2"
    yamls("theirs", "defaults: [none, _self_]\npath: /models/theirs\n")
    for words in (["compressor=theirs"], ["compressor=none", "compressor.path=/models/theirs"]):
        assert type(compose(found, *words).compressor) is External
    with pytest.raises(UserError, match=r"compressor\.quantization\.bits: .*three"):
        compose(found, "compressor=mine", "compressor.quantization.bits=three")
    yamls("slip", ALONE.replace("level", "lvl"))
    with pytest.raises(UserError, match="lvl"):
        compose(found, "compressor=slip")
    yamls("other", ALONE + "kind: unheard\n")
    with pytest.raises(UserError, match=r"compressor\.kind=unheard: this version has external, pruning_quantization"):
        compose(found, "compressor=other")


@pytest.mark.parametrize(
    ("label", "needs", "message"),
    [
        ("a/b", {DENSE}, r"its label is 'a/b', which cannot be a part of a folder's name"),
        ("none", {DENSE}, r"the label none is that of the dense model, .* it needs dense"),
        ("mine", set(), r"the label none is that of the dense model, .* its label is mine, and it needs nothing"),
    ],
)
def test_a_label_is_a_name_and_that_of_no_other(label, needs, message, compose, monkeypatch):
    monkeypatch.setattr(PruningQuantization, "label", label)
    monkeypatch.setattr(PruningQuantization, "needs", frozenset(needs))
    with pytest.raises(UserError, match=message):
        compose("compressor=rtn4")


def test_only_a_method_that_orders_columns_takes_an_order(compose):
    with pytest.raises(UserError, match="actorder=static: only gptq goes through columns in an order"):
        compose("compressor=awq4", "compressor.quantization.actorder=static")
    with pytest.raises(UserError, match="actorder=static: only gptq goes"):
        compose("compressor=wanda50", "compressor.quantization.actorder=static")
    assert compose("compressor=gptq4").compressor.quantization.actorder == "static"


def test_a_key_says_what_is_claimed_of_the_weights(compose):
    compressor = compose("compressor=sparsegpt_2of4_gptq4").compressor
    key = compressor.identity(64)
    assert key.keys() == {"sparsity", "quantization"} and key["quantization"]["group_size"] == 64
    assert claims_of(key) == compressor.claims(64) == Claims(0.5, "2:4", 4, 64, False, "static")
    pruned = compose("compressor=magnitude50").compressor
    assert pruned.identity(None)["quantization"] is None
    assert claims_of(pruned.identity(None)) == pruned.claims(None) == Claims(0.5)
    assert claims_of({"claims": vars(Claims(bits=2, group_size=-1))}) == Claims(bits=2, group_size=-1)
    assert claims_of({"external": {}}) == Claims()


@pytest.mark.parametrize(
    ("weights", "options", "expected"),
    [
        ({"calibrated": True}, {"kind": "svd", "kept": 0.5}, True),
        ({"calibrated": False}, {"kind": "ternary"}, False),
        ({}, {"sparsity": {"method": None}, "quantization": {"method": "gptq"}, "path": None}, True),  # older records
        ({}, {"sparsity": {"method": "magnitude"}, "quantization": {"method": "rtn"}, "path": None}, False),
        ({}, {"sparsity": {"method": None}, "quantization": {"method": None}, "path": "/theirs"}, False),
        ({}, {}, False),
    ],
)
def test_records_tell_whether_text_decided_the_weights(weights, options, expected):
    assert calibrated(weights, options) is expected
