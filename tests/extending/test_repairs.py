"""Repairs from outside the package, neither prompts nor trained adapters, have all that ours have."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import idp
from idp import models, plugins, registry
from idp.errors import UserError
from idp.recover import opening, stage
from idp.recover.context import CalibrationText
from idp.store import Store

TINY = ("model=tiny_llama", "model.dtype=float32", "model.device=cpu", "budget=smoke", "task=arc_easy", "tracker=none")
TINY += ("compressor=rtn3", "evaluation.perplexity=[corpus]")
FAST = ("latency=default", "latency.batch_sizes=[1]", "latency.input_tokens=[8]", "latency.new_tokens=2")
FAST += ("latency.warmup=0", "latency.rounds=2")
SHORT = [f"recovery.training.{name}={value}" for name, value in {
    "steps": 6, "batch_size": 2, "sequence_length": 24, "warmup_steps": 1, "evaluate_every": 2,
    "heldout_sequences": 4, "checkpoint_every": 2, "learning_rate": 0.01,
}.items()]  # fmt: skip
TEXT = ["the old bridge over the river"]


class Killed(BaseException):
    pass


def folder_of(record, tmp_path):
    return tmp_path / "outputs" / "runs" / record["idp"]["name"]


def product(record, tmp_path):
    return tmp_path / "outputs" / "store" / "recover" / record["idp"]["stages"]["recover"]["key"]


def exported(folder, out):
    from idp.export.checkpoint import export
    from idp.export.options import ExportOptions

    assert export(ExportOptions(record=str(folder), out=str(out))).difference < 1e-4
    return idp.load(out)


# The closed form


@pytest.fixture
def made(outside, compose, bridges, tmp_path):
    """`made(*overrides)`: a recovery through the stage, on a model in 3 bits: all that it was made from, and it."""

    def make(*overrides, report=None, store="store"):
        from idp.compress import stage as compressing
        from idp.corpora.corpus import named_corpus

        config = compose(*outside("low_rank", "bitfit"), *TINY, *bridges, *overrides)
        root = Store(tmp_path / store)
        dense = models.load(config.model, models.find_model(config.model), root)
        empty = models.open_empty(models.model_folder(dense), config.model)
        text = named_corpus("corpus", config.corpus, None)
        group_size = compressing.check(config.compressor, empty, text)
        compressed = compressing.compress(config.compressor, group_size, config.model, dense, text, root)
        calibration = CalibrationText(config.compressor.calibration, text)
        stage.check(config.recovery, empty, text, calibration)
        repair = stage.recover(
            config.recovery, config.model, compressed, text, config.seed, root, report, dense=dense,
            calibration=calibration,
        )  # fmt: skip
        return SimpleNamespace(
            config=config, dense=dense, compressed=compressed, repair=repair, blocks=calibration.blocks(empty)
        )

    return make


def test_the_correction_is_the_best_of_its_rank(made):
    """Of X (W_dense - W)' what is left is what Eckart and Young leave: the squares of its other singular values."""
    found = made("recovery=low_rank", "recovery.rank=4")
    dense, compressed = (
        models.open_model(models.model_folder(each), found.config.model).model
        for each in (found.dense, found.compressed)
    )
    inputs, names = {}, [name for name, module in compressed.named_modules() if name.endswith("proj")]
    for name in names:
        compressed.get_submodule(name).register_forward_hook(
            lambda _, given, __, name=name: inputs.update({name: given[0].flatten(0, -2).double()})
        )
    with torch.no_grad():
        compressed(found.blocks)
    tensors = load_file(found.repair.path / "adapter" / "adapter_model.safetensors")
    for name in names:
        lost = (dense.get_submodule(name).weight - compressed.get_submodule(name).weight).double()
        a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
        outputs = inputs[name] @ lost.T
        left = (outputs - inputs[name] @ (b @ a).T).square().sum()
        best = torch.linalg.svdvals(outputs)[4:].square().sum()
        assert left < 0.9 * outputs.square().sum(), name
        torch.testing.assert_close(left, best, rtol=1e-3, atol=1e-6)


def test_a_closed_form_from_end_to_end(outside, run_here, bridges, tmp_path, monkeypatch):
    """Killed behind it, it is reused; it brings the model nearer to the dense one; it is timed, opened and exported."""
    words = (*outside("low_rank"), *TINY, *bridges, "recovery=low_rank", *FAST)
    with monkeypatch.context() as killed:
        killed.setattr("idp.recover.selection.select", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run_here(*words)
    record = run_here(*words)
    about = record["idp"]
    assert about["stages"]["recover"]["reused"]
    assert about["repair"] == {"method": "low_rank", "prompts": [], "adapter": True}
    sizes = [json.loads((product(record, tmp_path) / "repair.json").read_text())["added"]]
    sizes.append(8 * sum(module.in_features + module.out_features for module in linear(record, tmp_path)))
    assert sizes[0] == sizes[1] == about["parameters"]["added"] and about["parameters"]["trainable"] == 0
    assert about["repair_bytes"] == 4 * sizes[0] and about["training"] is None
    far = {row: each["perplexity"]["bridges"] for row, each in about["baselines"].items()}
    assert abs(about["perplexity"]["bridges"] - far["dense"]) < abs(far["compressed"] - far["dense"]) / 2
    timed = {"dense", "compressed", "low_rank", "low_rank_merged"}
    assert {row["variant"] for row in about["latency"]["rows"]} == timed
    manifest = json.loads((product(record, tmp_path) / "manifest.json").read_text())["config"]
    assert manifest["recovery"] == {"kind": "low_rank", "rank": 8} and "seed" not in manifest
    assert manifest["calibration"]["seed"] == 0 and manifest["teacher"] == about["stages"]["load"]["key"]
    again = run_here(*words, "seed=1")
    assert again["idp"]["stages"]["recover"]["key"] == about["stages"]["recover"]["key"]  # nothing of it is random

    opened, compressed = (idp.load(folder_of(record, tmp_path), variant=each) for each in ("repaired", "compressed"))
    assert opened.generate(TEXT, 2) and opened.perplexity(TEXT) != compressed.perplexity(TEXT)
    assert exported(folder_of(record, tmp_path), tmp_path / "out").perplexity(TEXT) == pytest.approx(
        opened.perplexity(TEXT), rel=1e-5
    )
    moved = ("recovery=transfer", f"recovery.from={folder_of(record, tmp_path)}", "compressor=rtn4")
    about = run_here(*TINY, *bridges, *moved)["idp"]
    assert about["repair_bytes"] == 4 * sizes[0] and about["transfer"]["kind"] == "low_rank"


def linear(record, tmp_path):
    from idp.compress.recipe import compressed_layers
    from idp.finished import find_run

    model = find_run(folder_of(record, tmp_path)).open("compressed").model
    return compressed_layers(model).values()


def test_what_it_does_not_say_that_it_needs_is_not_there(made, monkeypatch):
    made("recovery=low_rank")
    monkeypatch.setattr(registry.recoveries()["low_rank"], "needs", frozenset({"weights"}))
    with pytest.raises(ValueError, match="a recovery that reads the dense model says so: DENSE among its `needs`"):
        made("recovery=low_rank", "recovery.rank=2")


# New values of parameters


def test_values_are_trained_resumed_and_put_back(made):
    """Killed again and again it ends as undisturbed; the model with the trained values in it is the repaired one."""
    whole = made("recovery=bitfit", *SHORT)
    kills, found = 0, None
    while found is None:
        seen = []

        def report(row, seen=seen, last=3 * kills + 3):
            assert any(name.startswith("bitfit/") for name in row)
            seen.append(row)
            if len(seen) == last:
                raise Killed

        try:
            found = made("recovery=bitfit", *SHORT, report=report, store="killed")
        except Killed:
            kills += 1
    assert kills > 1
    values = load_file(whole.repair.path / "values" / "values.safetensors")
    other = load_file(found.repair.path / "values" / "values.safetensors")
    assert values.keys() == other.keys() and all(torch.equal(values[name], other[name]) for name in values)
    history, again = (each.repair.read("history.json")["bitfit"] for each in (whole, found))
    assert history["best_loss"] < history["heldout"][0]["loss"] and history == again

    plain = models.open_model(models.model_folder(whole.compressed), whole.config.model).model
    tokens = whole.blocks[:1, :16]
    with torch.no_grad():
        before = plain(tokens).logits
        for name, value in values.items():
            assert "norm" in name
            plain.get_parameter(name).copy_(value)
        expected = plain(tokens).logits
        repaired = opening.open_repaired(whole.config.model, whole.compressed, whole.repair, whole.config.recovery)
        assert torch.equal(repaired.model(tokens).logits, expected) and not torch.equal(before, expected)
        variants = opening.open_variants(
            whole.config.model, whole.compressed, whole.repair, whole.config.recovery, merged=True
        )
        assert set(variants) == {"compressed", "bitfit"}
        for name in ("compressed", "bitfit", "compressed", "bitfit"):
            assert torch.equal(variants.ready(name).model(tokens).logits, before if name == "compressed" else expected)


def test_values_from_end_to_end(outside, run_here, bridges, tmp_path):
    from transformers import AutoModelForCausalLM

    record = run_here(*outside("bitfit"), *TINY, *bridges, "recovery=bitfit", *SHORT)
    about = record["idp"]
    assert about["parameters"]["added"] == about["parameters"]["trainable"] == 5 * 64  # two layers of two, and the last
    assert about["repair_bytes"] == 4 * 5 * 64 and about["repair"]["adapter"] and list(about["training"]) == ["bitfit"]
    opened = idp.load(folder_of(record, tmp_path))
    found = exported(folder_of(record, tmp_path), tmp_path / "out")
    assert opened.generate(TEXT, 2) and found.perplexity(TEXT) == pytest.approx(opened.perplexity(TEXT), rel=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    [snippet] = [line for line in card.split("`") if line.startswith("model.load_state_dict")]
    assert snippet == 'model.load_state_dict(safetensors.torch.load_file("values/values.safetensors"), strict=False)'
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    model.load_state_dict(load_file(tmp_path / "out" / "values" / "values.safetensors"), strict=False)
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, opened._engine.repaired.model(tokens).logits)


def test_values_that_a_checkpoint_packs_are_not_exported_with_it(outside, run_here, bridges, tmp_path, elsewhere):
    """A kind that changes a matrix, which gptq3 leaves packed: refused by name, and nothing is written."""
    words = outside("bitfit")
    file = elsewhere / "bitfit.py"
    file.write_text(file.read_text().replace("if parameter.dim() == 1", 'if name.endswith("q_proj.weight")'))
    record = run_here(*words, *TINY, *bridges, "compressor=gptq4", "recovery=bitfit", *SHORT)
    with pytest.raises(UserError, match=r"recovery=bitfit cannot be exported .*: it changes model.layers.0"):
        exported(folder_of(record, tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists() and idp.load(folder_of(record, tmp_path)).generate(TEXT, 2)


# A form of its own

STEERED = """
from dataclasses import dataclass

from idp import config
from idp.recover.context import RepairResult


@dataclass
class Steered(config.Recovery):
    size: float = config.option("what is added to every number of the last hidden state", default=0.5)
    adapts = True

    def make(self, work):
        import torch
        from safetensors.torch import save_file

        vector = torch.linspace(-self.size, self.size, work.loaded.model.config.hidden_size)
        save_file({"vector": vector}, work.own / "vector.safetensors")
        return RepairResult(adapter=len(vector))

    @classmethod
    def attach(cls, loaded, folder):
        from safetensors.torch import load_file

        vector = load_file(folder / "vector.safetensors")["vector"]
        loaded.model.model.norm.register_forward_hook(lambda _, __, states: states + vector.to(states))
        return loaded
"""
STEERED_YAML = "defaults: [/schema/recovery/steered@_here_, _self_]\nkind: steered\n"


def test_a_repair_in_a_form_of_its_own(outside, elsewhere, run_here, bridges, tmp_path):
    (elsewhere / "steered.py").write_text(STEERED)
    _, place = outside()
    (elsewhere / "conf" / "recovery" / "steered.yaml").write_text(STEERED_YAML)
    record = run_here("plugins=[steered]", place, *TINY, *bridges, "recovery=steered", *FAST)
    about, folder = record["idp"], folder_of(record, tmp_path)
    assert about["parameters"]["added"] == 64 and about["repair_bytes"] == 4 * 64 and about["repair"]["adapter"]
    assert {row["variant"] for row in about["latency"]["rows"]} == {"dense", "compressed", "steered"}
    assert about["perplexity"]["bridges"] != about["baselines"]["compressed"]["perplexity"]["bridges"]
    opened = idp.load(folder)
    assert opened.generate(TEXT, 2)
    with pytest.raises(UserError, match="recovery=steered cannot be exported: its repair is neither prompts"):
        exported(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    moved = run_here(
        "plugins=[steered]", *TINY, *bridges, "compressor=none", "recovery=transfer", f"recovery.from={folder}"
    )
    assert moved["idp"]["parameters"]["added"] == 64

    registry.recoveries()["steered"].export = classmethod(
        lambda cls, own, out: (
            (out / "vector.safetensors").write_bytes((own / "vector.safetensors").read_bytes())
            and "Under `own/` is a vector to add to the last hidden state."
        )
    )
    found = exported(folder, tmp_path / "out")
    assert found.perplexity(TEXT) == pytest.approx(opened.perplexity(TEXT), rel=1e-5)
    assert "Under `own/` is a vector" in (tmp_path / "out" / "README.md").read_text()


def test_a_form_that_nobody_here_knows_is_refused(outside, elsewhere, made, monkeypatch):
    """A repair that only its kind can put on, without that kind: never the model without its repair."""
    found = made("recovery=bitfit", *SHORT)
    copy = found.repair.path / "own"
    copy.mkdir()
    monkeypatch.setattr(plugins, "_LOADED", {})
    registry.forget()
    with pytest.raises(UserError, match=r"made by recovery=bitfit, .* name the module that has it with plugins=\["):
        opening.open_repaired(found.config.model, found.compressed, found.repair, None)
    copy.rmdir()
    assert opening.open_repaired(found.config.model, found.compressed, found.repair, None)  # values need no kind


def test_what_is_written_into_the_model_is_no_repair(made):
    """Latency takes a repair off again, so one that overwrites weights is refused."""
    from idp.prompting.variants import Attached

    found = made("recovery=bitfit", *SHORT)
    model = models.open_model(models.model_folder(found.compressed), found.config.model).model
    with pytest.raises(ValueError, match="put others in their place"), Attached(model), torch.no_grad():
        model.model.norm.weight.mul_(2)
