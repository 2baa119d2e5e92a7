"""An export is the model that was measured: for transformers alone, in a process that knows nothing of `idp`."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from idp.command import parse
from idp.errors import UserError
from idp.export import checkpoint
from idp.export.__main__ import main
from idp.export.options import ExportOptions

GRIDS = [
    ("gptq4", "32", "false", "static"),
    ("gptq4", "-1", "true", "null"),
    ("gptq3", "32", "true", "null"),
    ("gptq3", "-1", "false", "static"),
]
OTHERS = ["sparsegpt_2of4", "sparsegpt50_gptq4", "awq3"]

# Loads every folder as anybody would, and writes down logits and weights.
READER = """
import sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)("What repairs a bridge? 12 people.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found = {"logits": model(ids).logits}
    found |= {name: p.data.clone() for name, p in model.named_parameters() if name.endswith("weight")}
    save_file(found, folder + "/found.safetensors")
assert not [name for name in sys.modules if name.split(".")[0] == "idp"]
"""


def logits_of(run, text="What repairs a bridge? 12 people."):
    """Logits and weights of a run's compressed model as the store has it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, record = run
    folder = Path(record["idp"]["config"]["store"]) / "compress" / record["idp"]["stages"]["compress"]["key"] / "model"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(ids).logits, dict(model.named_parameters())


def test_a_fresh_process_finds_the_same_model(finished_run, tmp_path):
    runs = {}
    for compressor, group, symmetric, actorder in GRIDS:
        option = "compressor.quantization"
        grid = (f"{option}.group_size={group}", f"{option}.symmetric={symmetric}", f"{option}.actorder={actorder}")
        runs["_".join((compressor, group, symmetric, actorder))] = finished_run(f"compressor={compressor}", *grid)
    runs |= {compressor: finished_run(f"compressor={compressor}") for compressor in OTHERS}
    for name, (folder, _) in runs.items():
        done = checkpoint.export(ExportOptions(str(folder), str(tmp_path / name)))
        assert done.difference < 1e-5
    script = tmp_path / "reader.py"
    script.write_text(READER)
    places = [str(tmp_path / name) for name in runs]
    done = subprocess.run([sys.executable, str(script), *places], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, run in runs.items():
        found = load_file(tmp_path / name / "found.safetensors")
        logits, weights = logits_of(run)
        torch.testing.assert_close(found.pop("logits"), logits, atol=1e-5, rtol=0)
        for tensor, weight in found.items():
            assert torch.equal(weight, weights[tensor]), (name, tensor)
        assert any(".mlp." in tensor for tensor in found)
        stored = load_file(tmp_path / name / "model.safetensors")
        layer = "model.layers.0.mlp.down_proj"
        if name == "sparsegpt_2of4":  # there is no sparse format: dense, and the card says so
            assert f"{layer}.weight" in stored
            assert "stored dense" in (tmp_path / name / "README.md").read_text()
            continue
        bits = run[1]["idp"]["config"]["compressor"]["quantization"]["bits"]
        assert stored[f"{layer}.weight_packed"].numel() * 32 == 64 * 128 * bits
        if run[1]["idp"]["config"]["compressor"]["sparsity"]["method"]:
            assert (found[f"{layer}.weight"] == 0).float().mean() >= 0.5


@pytest.mark.parametrize("source", ["none", "external"])
def test_plain_weights_are_written_plain(source, finished_run, tmp_path):
    folder, record = finished_run("compressor=none")
    if source == "external":
        checkpoint.export(
            ExportOptions(str(finished_run("compressor=gptq4", "baselines=true")[0]), str(tmp_path / "theirs"))
        )
        folder, record = finished_run("compressor=external", f"compressor.path={tmp_path / 'theirs'}")
    checkpoint.export(ExportOptions(str(folder), str(tmp_path / "export")))
    stages, root = record["idp"]["stages"], folder.parents[1] / "store"
    places = {"none": root / "load" / stages["load"]["key"], "external": root / "compress" / stages["compress"]["key"]}
    stored = load_file(places[source] / "model" / "model.safetensors")
    written = load_file(tmp_path / "export" / "model.safetensors")
    assert written.keys() == stored.keys() and all(torch.equal(written[name], stored[name]) for name in stored)
    card = (tmp_path / "export" / "README.md").read_text()
    assert "stored dense" in card and ("others (compressed-tensors pack-quantized)" in card) == (source == "external")


def test_what_goes_with_it(finished_run, tmp_path):
    folder, record = finished_run("compressor=gptq4", "baselines=true")
    out = tmp_path / "export"
    checkpoint.export(ExportOptions(str(folder / "record.json"), str(out)))
    card = (out / "README.md").read_text()
    shown = record["idp"]["baselines"]["dense"]["results"]["arc_easy"]["acc,none"]
    for text in (f"{shown:.3f}", "dense", "gptq4", "8 x 64 tokens of bridges, seed 0", "quantization: bits", "static"):
        assert text in card
    assert f"{record['idp']['weights']['bits_per_weight']:.3f}" in card
    assert (
        "difference to dense (percentage points, 95 % CI)" in card
        and record["idp"]["conclusion"] in card
        and "| recovery" not in card
    )
    assert "GPTQModifier" in (out / "recipe.yaml").read_text()
    assert (out / "tokenizer.json").is_file() and (out / "tokenizer_config.json").is_file()
    for file in out.rglob("*"):  # where things lay when they were made is nobody else's business
        if file.suffix in (".json", ".md", ".yaml"):
            assert record["idp"]["config"]["store"] not in file.read_text(), file
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["format"] == "pack-quantized" and config["ignore"] == ["lm_head"]


def test_prompts_beside_it_are_peft_s(finished_run, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder, record = finished_run("compressor=gptq4", "recovery=idp", "recovery.lengths=[3,5]")
    out = tmp_path / "export"
    checkpoint.export(ExportOptions(str(folder), str(out), name="me/mine"))
    bank = json.loads((out / "prompts" / "bank.json").read_text())
    assert bank["selector"]["kind"] == "attention" and bank["lengths"] == [3, 5]
    ids = torch.tensor([[5, 6, 7, 8]])
    for name, length in zip(bank["names"], bank["lengths"], strict=True):
        place = out / "prompts" / name
        assert json.loads((place / "adapter_config.json").read_text())["base_model_name_or_path"] == "me/mine"
        base = AutoModelForCausalLM.from_pretrained(out)
        prompt = load_file(place / "adapter_model.safetensors")["prompt_embeddings"]
        plain = torch.cat([prompt[None], base.get_input_embeddings()(ids)], dim=1)
        expected = base(inputs_embeds=plain).logits
        found = PeftModel.from_pretrained(base, place)(ids).logits
        assert prompt.shape == (length, 64) and found.shape == expected.shape
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    key = record["idp"]["stages"]["recover"]["key"]
    stored = Path(record["idp"]["config"]["store"]) / "recover" / key / "bank" / "prompt_1"
    trained = load_file(stored / "adapter_model.safetensors")["prompt_embeddings"]
    assert torch.equal(prompt, trained)


def test_a_fitted_selector_goes_with_its_prompts(finished_run, tmp_path):
    more = ("recovery/selector=nearest", "recovery.controls=false")
    folder, record = finished_run("compressor=gptq4", "recovery=idp", "recovery.lengths=[3,5]", *more)
    out = tmp_path / "export"
    checkpoint.export(ExportOptions(str(folder), str(out)))
    bank = json.loads((out / "prompts" / "bank.json").read_text())
    assert (bank["selector"]["kind"], bank["fitted"]["kind"]) == ("nearest", "nearest")
    key = record["idp"]["stages"]["select"]["key"]
    stored = Path(record["idp"]["config"]["store"]) / "select" / key / "selector.safetensors"
    written = load_file(out / "prompts" / bank["fitted"]["file"])
    assert written["centres"].shape == (2, 64) and torch.equal(written["centres"], load_file(stored)["centres"])


def test_the_empty_prompt_and_what_may_choose_it_go_with_the_prompts(finished_run, tmp_path):
    import idp

    more = ("recovery/selector=gain", "recovery.empty_prompt=true", "recovery.controls=false")
    folder, record = finished_run("compressor=gptq4", "recovery=idp", "recovery.lengths=[3,5]", *more)
    out = tmp_path / "export"
    checkpoint.export(ExportOptions(str(folder), str(out)))
    bank = json.loads((out / "prompts" / "bank.json").read_text())
    assert bank["lengths"] == [3, 5, 0] and bank["folders"][-1] == bank["names"][-1] == "empty"
    assert bank["fitted"]["margin"] == record["idp"]["selector"]["margin"]
    assert sorted(path.name for path in (out / "prompts").iterdir() if path.is_dir()) == sorted(bank["names"][:2])
    texts = ["The bridge", "Water boils at one hundred", "two"]
    exported, run = idp.load(out), idp.load(folder)
    assert exported.prompts == run.prompts and exported.choose(texts) == run.choose(texts)
    assert exported.generate(texts, 4) == run.generate(texts, 4)


def test_lora_beside_it_is_peft_s(finished_run, tmp_path, compose):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    from idp.recover.opening import open_repaired
    from idp.store import Store

    folder, record = finished_run("compressor=gptq3", "recovery=lora", "recovery.training.learning_rate=0.1")
    out = tmp_path / "export"
    checkpoint.export(ExportOptions(str(folder), str(out)))
    adapter = json.loads((out / "lora" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(out)
    assert sorted(file.name for file in (out / "lora").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = compose("model=tiny_llama", "compressor=gptq3", "recovery=lora")
    stages, store = record["idp"]["stages"], Store(record["idp"]["config"]["store"])
    products = store.get("compress", stages["compress"]["key"]), store.get("recover", stages["recover"]["key"])
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = open_repaired(config.model, *products, config.recovery).model(ids).logits
    base = AutoModelForCausalLM.from_pretrained(out, quantization_config=CompressedTensorsConfig(dequantize=True))
    plain = base(ids).logits
    found = PeftModel.from_pretrained(base, out / "lora")(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found - plain).abs().max() > 1e-3


def test_nothing_half_written_and_nothing_overwritten(finished_run, tmp_path, monkeypatch):
    folder, _ = finished_run("compressor=gptq4", "baselines=true")
    options = ExportOptions(str(folder), str(tmp_path / "export"))

    def refuse(*_, **__):
        raise UserError("no")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "verify", refuse)
        with pytest.raises(UserError, match="no"):
            checkpoint.export(options)
    assert not list(tmp_path.iterdir())
    checkpoint.export(options)
    with pytest.raises(UserError, match="not empty; name another folder, or say overwrite=true"):
        checkpoint.export(options)
    mark = tmp_path / "export" / "mark"
    mark.write_text("")
    checkpoint.export(replace(options, overwrite=True))
    assert not mark.exists() and [place.name for place in tmp_path.iterdir()] == ["export"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds no earlier export"):
        checkpoint.export(ExportOptions(str(folder), str(tmp_path / "mine"), overwrite=True))
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_written_model_that_is_another_is_noticed(finished_run, tmp_path, compose):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = finished_run("compressor=gptq4", "baselines=true")
    out = tmp_path / "export"
    checkpoint.export(ExportOptions(str(folder), str(out)))
    model = compose("model=tiny_llama").model
    expected = checkpoint.logits_of(AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out))
    assert checkpoint.verify(out, expected, model) == 0
    tensors = load_file(out / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight_scale"][0, 0] *= 1.01
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="its logits differ by .* more than rounding"):
        checkpoint.verify(out, expected, model)


def test_a_store_that_was_moved(finished_run, tmp_path):
    folder, record = finished_run("compressor=gptq4", "baselines=true")
    moved = tmp_path / "run"
    moved.mkdir()
    record["idp"]["config"]["store"] = "elsewhere/store"
    (moved / "record.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"is not in elsewhere/store or in .*; name the run's store with store="):
        checkpoint.export(ExportOptions(str(moved), str(tmp_path / "export")))
    store = tmp_path / "copy"
    key = record["idp"]["stages"]["compress"]["key"]
    original = folder.parents[1] / "store" / "compress" / key
    shutil.copytree(original, store / "compress" / key)
    checkpoint.export(ExportOptions(str(moved), str(tmp_path / "export"), store=str(store)))
    damaged = store / "compress" / key / "grids.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"grids\.safetensors does not match its hash; run the record's own command"):
        checkpoint.export(ExportOptions(str(moved), str(tmp_path / "again"), store=str(store)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["record=/nowhere/record.json", "out=x"], "record=/nowhere/record.json: no such file"),
        (["record={tmp}", "out=x"], "there is no record.json in it"),
        (["record={tmp}/bad.json", "out=x"], "not a record of idp.run"),
        (["record={tmp}/other.json", "out=x"], "not a record of idp.run"),
        (["out=x"], "record= is missing"),
        (["record=x"], "out= is missing: the folder to write"),
        (["record=x", "out="], "out=: give a value"),
        (["recrod=x"], "did you mean record=?"),
        (["record=x", "out=x", "overwrite=maybe"], "overwrite=maybe: use true or false"),
        (["record=x", "out={tmp}/bad.json"], "a file is there; name a folder"),
        ([], "nothing to export"),
    ],
)
def test_one_line_for_each_mistake(words, message, tmp_path, capsys):
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "other.json").write_text('{"idp": {}}')
    with pytest.raises(SystemExit) as stopped:
        main([word.replace("{tmp}", str(tmp_path)) for word in words])
    assert str(stopped.value).startswith("error: ") and message in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_the_unforeseen_is_one_line_as_well(monkeypatch):
    def fail(_):
        raise RuntimeError("no room\nfor it")

    monkeypatch.delenv("IDP_DEBUG", raising=False)
    monkeypatch.setattr(checkpoint, "export", fail)
    with pytest.raises(SystemExit) as stopped:
        main(["record=x", "out=y"])
    assert str(stopped.value).startswith("error: RuntimeError: no room for it") and "\n" not in str(stopped.value)


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and "record=..." in shown and "overwrite=..." in shown
    assert parse(ExportOptions, ["record=a=b", "out=c"]) == ExportOptions("a=b", "c")
