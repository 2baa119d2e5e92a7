"""`only=repair`: adapters that name a checkpoint which is there already, load on it, and are as vLLM wants them."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from idp.errors import UserError
from idp.export import adapters, checkpoint, vllm
from idp.export.__main__ import main
from idp.export.options import ExportOptions
from tests.compress import packers

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="session")
def theirs(finished_run, tmp_path_factory):
    """A packed checkpoint of somebody else's: compressed-tensors, 4 bits, symmetric."""
    out = tmp_path_factory.mktemp("theirs") / "packed"
    run = finished_run("compressor=gptq4", "compressor.quantization.symmetric=true")
    checkpoint.export(ExportOptions(str(run[0]), str(out)))
    return out


def repaired_logits(record):
    from idp.finished import of_record

    with torch.no_grad():
        return of_record(record).open("repaired").model(IDS).logits


def test_a_repair_of_a_packed_checkpoint_names_it_and_loads_on_it(theirs, finished_run, tmp_path, capsys):
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    import idp

    folder, record = finished_run("compressor=external", f"compressor.path={theirs}", "recovery=lowrank")
    out = tmp_path / "repair"
    main([f"record={folder}", f"out={out}", "only=repair"])
    shown = capsys.readouterr()
    assert f"the repair alone, for {theirs}" in shown.out and "vLLM" not in shown.err
    assert sorted(file.name for file in out.iterdir()) == ["README.md", "export.json", "lora"]
    about = PeftConfig.from_pretrained(out / "lora")
    assert about.base_model_name_or_path == str(theirs)
    assert vllm.faults(out / "lora") == []

    plain = CompressedTensorsConfig(dequantize=True)
    base = AutoModelForCausalLM.from_pretrained(about.base_model_name_or_path, quantization_config=plain)
    with torch.no_grad():
        without = base(IDS).logits
        found = PeftModel.from_pretrained(base, out / "lora")(IDS).logits
    torch.testing.assert_close(found, repaired_logits(record), atol=1e-4, rtol=0)
    assert (found - without).abs().max() > 1e-3

    card = (out / "README.md").read_text()
    assert f"base_model: {theirs}" in card and record["idp"]["conclusion"] in card
    assert f"vllm serve {theirs} --enable-lora --max-lora-rank {vllm.max_lora_rank(out / 'lora')}" in card
    assert record["idp"]["config"]["store"] not in card + (out / "export.json").read_text()
    with pytest.raises(UserError, match=f"holds the repair alone, for {theirs}.*idp.load opens the run itself"):
        idp.load(out)
    checkpoint.export(ExportOptions(str(folder), str(out), overwrite=True, only="repair", name="her/packed"))
    assert PeftConfig.from_pretrained(out / "lora").base_model_name_or_path == "her/packed"


def test_layers_and_prompts_for_a_gptq_file(finished_run, model_folders, compose, tmp_path):
    from idp import models
    from idp.store import Store

    config = compose("model=tiny_llama").model
    dense = models.model_folder(models.load(config, models.find_model(config), Store(tmp_path / "store")))
    theirs = tmp_path / "gptq"
    packers.gptq_rounded(dense, theirs, bits=4, group=32, symmetric=True, stored=1, stated="gptq")
    external = ("compressor=external", f"compressor.path={theirs}")
    folder, _ = finished_run(*external, "recovery=lora_idp", "recovery.lengths=[3,5]", "recovery.controls=false")
    out = tmp_path / "repair"
    done = checkpoint.export(ExportOptions(str(folder), str(out), only="repair"))
    assert done.base == str(theirs) and done.difference is None and done.refused == []
    named = [json.loads(file.read_text()) for file in out.rglob("adapter_config.json")]
    assert len(named) == 3 and {each["base_model_name_or_path"] for each in named} == {str(theirs)}
    packed, config = load_file(theirs / "model.safetensors"), json.loads((out / "lora" / vllm.CONFIG).read_text())
    for name, tensor in load_file(out / "lora" / vllm.WEIGHTS).items():
        layer, side = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name).groups()
        width = packed[f"{layer}.qweight"].shape  # [in / 8, out], 8 codes in an integer
        assert tensor.shape == ((config["r"], width[0] * 8) if side == "A" else (width[1], config["r"])), name


def test_new_values_must_be_the_checkpoint_s_own(theirs, finished_run, tmp_path):
    folder, _ = finished_run("compressor=external", f"compressor.path={theirs}", "recovery=norms")
    checkpoint.export(ExportOptions(str(folder), str(tmp_path / "repair"), only="repair"))
    values = load_file(next((tmp_path / "repair" / "values").glob("*.safetensors")))
    assert set(values) < set(load_file(theirs / "model.safetensors"))


def test_what_is_no_repair_of_a_checkpoint_is_refused(finished_run, tmp_path):
    folder, _ = finished_run("compressor=gptq4", "baselines=true")
    lowrank, _ = finished_run("compressor=gptq4", "recovery=lowrank")
    for run, options, message in (
        (folder, {"only": "repair"}, "the run repaired nothing"),
        (lowrank, {"only": "repair"}, "name it with name=<folder or hub id>"),
        (lowrank, {"only": "prompts"}, "only=prompts: use only=repair"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            checkpoint.export(ExportOptions(str(run), str(tmp_path / "out"), **options))
    assert not list(tmp_path.iterdir())
    checkpoint.export(ExportOptions(str(lowrank), str(tmp_path / "out"), only="repair", name="me/gptq4"))
    described = json.loads((tmp_path / "out" / "lora" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == "me/gptq4"


def adapter(folder: Path, tensors: dict | None = None, **changed) -> Path:
    folder.mkdir()
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj"], "bias": "none"} | changed
    (folder / vllm.CONFIG).write_text(json.dumps({name: value for name, value in config.items() if value != "absent"}))
    if tensors is None:
        layers = [f"base_model.model.model.layers.0.self_attn.{name}" for name in ("q_proj", "k_proj")]
        tensors = {f"{layer}.lora_A.weight": torch.zeros(4, 16) for layer in layers}
        tensors |= {f"{layer}.lora_B.weight": torch.zeros(16, 4) for layer in layers}
    save_file(tensors, folder / vllm.WEIGHTS)
    return folder


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({}, None),
        ({"use_rslora": True}, None),
        ({"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"k_proj": 4}}, None),  # the same scale
        ({"alpha_pattern": {"k_proj": 4}}, "k_proj has a scale of its own"),
        ({"rank_pattern": {"model.layers.0.self_attn.k_proj": 2}}, "k_proj has a scale of its own"),
        ({"r": "absent"}, "adapter_config.json has no r"),
        ({"target_modules": None}, "adapter_config.json has no target_modules"),
        ({"bias": "lora_only"}, "it trains biases"),
        ({"modules_to_save": ["lm_head"]}, "it holds whole modules (lm_head)"),
        ({"use_dora": True}, "it is a DoRA adapter"),
        ({"r": 600, "lora_alpha": 600}, "its rank is above 512"),
        ({"tensors": {"model.q_proj.weight": torch.zeros(1)}}, "tensors such as model.q_proj.weight"),
        ({"tensors": {"base_model.model.q_proj.lora_A.weight": torch.zeros(4, 1)}}, "q_proj has one side"),
    ],
)
def test_what_vllm_does_not_load(changed, fault, tmp_path):
    found = vllm.faults(adapter(tmp_path / "lora", **changed))
    assert found == [] if fault is None else len(found) == 1 and fault in found[0]


@pytest.mark.parametrize(("rank", "wanted"), [(1, 8), (8, 8), (9, 16), (300, 320), (512, 512), (513, None)])
def test_the_rank_that_vllm_must_be_told(rank, wanted, tmp_path):
    assert vllm.max_lora_rank(adapter(tmp_path / "lora", r=rank)) == wanted


@pytest.mark.parametrize(
    ("kind", "origin", "base"),
    [
        ("hub", "her/model-4bit", "her/model-4bit"),
        ("folder", "hers", "{here}/hers"),
        ("folder", "{here}/hers", "{here}/hers"),
        ("folder", "moved/elsewhere", "moved/elsewhere"),  # what is not here any more is named as it was given
        ("gguf", "hers.gguf", "{here}/hers.gguf"),
    ],
)
def test_her_checkpoint_is_named_so_that_any_program_finds_it(kind, origin, base, tmp_path, monkeypatch, compose):
    (tmp_path / "hers").mkdir()
    (tmp_path / "hers.gguf").touch()
    monkeypatch.chdir(tmp_path)
    compressor = compose("compressor=external", f"compressor.path={origin.format(here=tmp_path)}").compressor
    compressed = SimpleNamespace(manifest={"config": {"external": {"kind": kind}}})
    run = SimpleNamespace(compressor=compressor, compressed=compressed)
    found = adapters.base_of(run, ExportOptions("run", "out", only="repair"))
    assert found == base.format(here=tmp_path)


def test_what_vllm_would_not_load_is_said_beside_the_export(monkeypatch, capsys):
    done = checkpoint.Done(Path("out"), 0.0, refused=["it is a DoRA adapter"])
    monkeypatch.setattr(checkpoint, "export", lambda _: done)
    main(["record=x", "out=out"])
    assert capsys.readouterr().err == "warning: vLLM does not load lora/: it is a DoRA adapter\n"


@pytest.mark.parametrize("compressor", ["gptq3", "awq3", "rtn3", "wanda50_gptq4"])
def test_a_grid_without_zero_points_is_an_option_of_every_quantizer(compressor, compose):
    config = compose("model=tiny_llama", f"compressor={compressor}", "compressor.quantization.symmetric=true")
    config.compressor.check()
    assert config.compressor.claims(64).symmetric
