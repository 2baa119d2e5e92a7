"""A compressor from outside the package has all that ours have: measured, stored, recorded, reported, exported."""

import json

import pytest
import torch
from safetensors.torch import load_file

from idp import registry
from idp.errors import UserError

TINY = ("model=tiny_llama", "model.dtype=float32", "budget=smoke", "task=arc_easy", "tracker=none", "recovery=none")


def truncated(weight, inputs, rank):
    """Of W the matrix of that rank that is nearest on inputs X, by the plain formula: W V V^T in the metric of X."""
    moments = inputs.double().T @ inputs.double()
    moments += 0.01 * moments.diagonal().mean() * torch.eye(len(moments), dtype=torch.double)
    values, vectors = torch.linalg.eigh(moments)
    half = vectors @ values.sqrt().diag() @ vectors.T  # another root of the moments than Cholesky's, the same optimum
    left, sizes, right = torch.linalg.svd(weight.double() @ half)
    return (left[:, :rank] * sizes[:rank]) @ right[:rank] @ torch.linalg.inv(half)


@pytest.fixture
def compressed(outside, run_here, tmp_path):
    """A run with `compressor=svd`: its folder and its record."""
    words = outside("svd")
    record = run_here(*words, *TINY, "compressor=svd", "compressor.kept=0.25", "evaluation.perplexity=[corpus]")
    return tmp_path / "outputs" / "runs" / record["idp"]["name"], record


def test_it_is_measured_recorded_and_reported_as_ours_are(compressed, tmp_path, compose, outside, bridges):
    from transformers import AutoModelForCausalLM

    from idp import models
    from idp.analyze.claims import check
    from idp.compress.stage import calibration_blocks
    from idp.corpora.corpus import named_corpus
    from idp.finished import find_run
    from idp.records.collect import collect
    from idp.records.tables import run_summary
    from idp.report.page import data
    from idp.report.view import views

    folder, record = compressed
    about = record["idp"]
    assert about["compressor"] == "svd25" and "-svd25-" in about["name"]
    options = about["config"]["compressor"]
    assert options.keys() == {"kind", "calibration", "kept"} and options["kind"] == "svd" and options["kept"] == 0.25
    assert about["config"]["plugins"] == ["svd"]
    weights = about["weights"]
    assert weights["bits_per_weight"] == 16 and weights["sparsity"] < 0.01 and weights["calibrated"] is True
    assert 0 < weights["reconstruction_error"] < 1 and weights["dead_inputs"] == 0
    assert weights["packed_bytes"] == 4 * about["parameters"]["model"]  # float32, nothing is packed

    run = find_run(folder)
    assert run.compressor.kind == "svd" and type(run.compressor).__module__ == "svd"
    product = run.product("compress")
    saved = load_file(product.path / "model" / "model.safetensors")
    rows = product.read("weights.json")["layers"]
    for name, row in rows.items():
        assert torch.linalg.matrix_rank(saved[f"{name}.weight"], rtol=1e-4) == round(min(row["shape"]) / 4)
        assert row["reconstruction_error"] > 0
    manifest = product.manifest["config"]
    assert manifest["compressor"] == {"kind": "svd", "kept": 0.25} and "quantization" not in manifest
    [code] = manifest["plugin"]
    assert code["module"] == "svd" and len(code["sha256"]) == 64

    config = compose(*TINY, "compressor=gptq3", *bridges)
    source = models.model_folder(run.product("load"))
    dense = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    empty = models.open_empty(source, config.model)
    blocks = calibration_blocks(config.compressor, named_corpus("corpus", config.corpus, None), empty)
    layer, seen = dense.model.layers[0].self_attn.q_proj, []
    layer.register_forward_hook(lambda _, given, __: seen.append(given[0].flatten(0, -2)))
    with torch.no_grad():
        dense(blocks)
    expected = truncated(layer.weight.data, torch.cat(seen), 16)
    found = saved["model.layers.0.self_attn.q_proj.weight"].double()
    assert (found - expected).norm() / expected.norm() < 1e-3

    assert "weights: 16.00 bits each" in run_summary(record) and "svd25" in about["conclusion"]
    collection = collect([folder])
    assert not collection.notes and {model.compressor for model in collection.models} == {"none", "svd25"}
    assert [row["name"] for row in data(collection, views(collection), "t")["views"][0]["rows"]] == ["dense", "svd25"]
    check(collection)


def test_it_is_opened_and_exported(compressed, tmp_path):
    import idp
    from idp.export.checkpoint import export
    from idp.export.options import ExportOptions

    folder, _ = compressed
    assert idp.load(folder, variant="compressed").generate(["The bridge"], 2)
    done = export(ExportOptions(record=str(folder), out=str(tmp_path / "out")))
    assert done.difference < 1e-4
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| kept" in card and "0.25" in card and "stored dense" in card and "calibration" in card


def test_edited_code_is_another_product_and_the_same_code_the_same(elsewhere, outside, compose):
    words = outside("svd")
    before = registry.code_of(compose(*words, *TINY, "compressor=svd").compressor)
    assert before == registry.code_of(compose(*words, *TINY, "compressor=svd").compressor)
    file = elsewhere / "svd.py"
    file.write_text(file.read_text().replace("0.01 *", "0.02 *"))
    assert registry.code_of(compose(*words, *TINY, "compressor=svd").compressor) != before
    assert registry.code_of(compose("compressor=gptq3").compressor) == {}  # ours: versions of stages say it


def test_its_options_are_checked_as_ours_are(outside, compose):
    words = outside("svd")
    for option, message in (
        ("compressor.kept=1.5", "compressor.kept=1.5: must be from 0 to 1"),
        ("compressor.kept=0", "compressor.kept=0: nothing would be left"),
        ("compressor.kind=gptq", "compressor.kind=gptq: its options are those of svd; say compressor=gptq"),
    ):
        with pytest.raises(UserError, match=message):
            compose(*words, "compressor=svd", option)


def test_a_plug_in_of_a_record_that_is_gone_is_named(compressed, elsewhere, monkeypatch):
    import sys

    from idp import plugins
    from idp.finished import find_run

    folder, _ = compressed
    assert json.loads((folder / "record.json").read_text())["idp"]["config"]["plugins"] == ["svd"]
    (elsewhere / "svd.py").unlink()
    del sys.modules["svd"]
    monkeypatch.setattr(plugins, "_LOADED", {})
    registry.forget()
    with pytest.raises(UserError, match=r"plugins=\[svd\]: there is no module svd; run where it lies"):
        find_run(folder)
