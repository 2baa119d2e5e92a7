"""Low-rank experts: each the best update of its rank on its text, chosen as prompts are, and kept with PEFT."""

import json

import pytest
import torch

import idp
from idp import models
from idp.compress import stage as compressing
from idp.compress.recipe import compressed_layers
from idp.errors import UserError
from idp.recover import opening, stage
from idp.recover.banks.cluster import fill_up, k_means, text_embeddings
from idp.recover.closed_form import best_update
from idp.recover.context import CalibrationText
from idp.recover.lowrank_experts import read
from idp.store import Store

TINY = ("model=tiny_llama", "model.dtype=float32", "model.device=cpu", "budget=smoke", "task=arc_easy", "tracker=none")
TINY += ("compressor=rtn3", "evaluation.perplexity=[corpus]", "baselines=false")
EXPERTS = ("recovery=lowrank_experts", "recovery.rank=4")
FAST = ("latency=default", "latency.batch_sizes=[2]", "latency.input_tokens=[8]", "latency.new_tokens=2")
FAST += ("latency.warmup=0", "latency.rounds=2")


TRAINED = ["recovery.train=true"] + [f"recovery.training.{name}={value}" for name, value in {
    "steps": 12, "batch_size": 2, "sequence_length": 24, "warmup_steps": 1, "evaluate_every": 4,
    "heldout_sequences": 4, "checkpoint_every": 2, "learning_rate": 0.01,
}.items()]  # fmt: skip


class Killed(BaseException):
    pass


@pytest.fixture
def made(compose, bridges, tmp_path):
    """`made(*overrides)`: the experts through the stage, on a model in 3 bits, and all that they were made from."""

    def make(*overrides, store="store", report=None):
        from idp.corpora.corpus import named_corpus

        config = compose(*TINY, *bridges, *EXPERTS, *overrides)
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
        return config, dense, compressed, calibration, repair

    return make


def numbers_by_hand(model, rank, experts):
    layers = compressed_layers(model).values()
    return experts * sum(rank * (layer.in_features + layer.out_features) for layer in layers)


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_opt"])
def test_each_expert_is_the_closed_form_of_its_cluster(family, made):
    """Held to inputs that hooks see in the model's own forward pass over the blocks of each cluster."""
    config, dense, compressed, calibration, repair = made(
        f"model={family}", "recovery.experts=2", "recovery.shared=0.3"
    )
    loaded = models.open_model(models.model_folder(compressed), config.model)
    whole = models.open_model(models.model_folder(dense), config.model)
    blocks = calibration.blocks(loaded)
    bank = repair.read("bank/bank.json")
    assert bank["lengths"] == [0, 0] and bank["names"] == ["expert_0", "expert_1"]
    found = read(repair.path / "own")
    assert len(found) == 2 and found[0].keys() == compressed_layers(loaded.model).keys()

    seen = {}
    names = list(found[0])[:3] + list(found[0])[-3:]
    for name in names:
        loaded.model.get_submodule(name).register_forward_hook(
            lambda layer, inputs, output, name=name: seen.setdefault(name, []).append(inputs[0].flatten(0, -2).double())
        )
    with torch.no_grad():
        for block in blocks:
            loaded.model(input_ids=block[None])
    points = text_embeddings(loaded, blocks, 4)
    points = (points - points.mean(0)) / points.std(0, correction=0)
    labels, middles = k_means(points, 2, config.recovery.restarts, config.seed)
    members = fill_up(labels, torch.cdist(points, middles), config.recovery.smallest)
    assert bank["made"]["blocks"] == [len(own) for own in members]
    for name in names:
        error = (whole.model.get_submodule(name).weight - loaded.model.get_submodule(name).weight).double()
        every = torch.cat(seen[name])
        for expert, own in enumerate(members):
            mine = torch.cat([seen[name][block] for block in own.tolist()])
            moment = 0.7 * mine.T @ mine / len(mine) + 0.3 * every.T @ every / len(every)
            a, b = best_update(error, moment, 4, config.recovery.damping)
            stored_a, stored_b = found[expert][name]
            torch.testing.assert_close(
                (stored_b @ stored_a).double(), b @ a, atol=1e-4 * float(error.abs().max()), rtol=1e-3
            )

    counted = numbers_by_hand(loaded.model, 4, 2)
    assert repair.read("repair.json")["added"] == counted == config.recovery.numbers(loaded)
    assert repair.read("repair.json")["bytes"] == 4 * counted and repair.read("repair.json")["trainable"] == 0


def test_experts_of_all_text_are_one(made):
    """Where nothing but the text of all counts, every expert is the update that a single one is."""
    *_, three = made("recovery.shared=1.0")
    *_, one = made("recovery.experts=1")
    [alone] = read(one.path / "own")
    for expert in read(three.path / "own"):
        for name, (a, b) in expert.items():
            torch.testing.assert_close(b @ a, alone[name][1] @ alone[name][0], atol=1e-6, rtol=1e-4)


def test_one_expert_is_a_plain_adapter(made, tmp_path):
    """The same numbers in PEFT's hands."""
    from peft import PeftModel

    config, _, compressed, _, repair = made("recovery.experts=1", "recovery.targets=[q_proj,down_proj]")
    repaired = opening.open_repaired(config.model, compressed, repair, config.recovery)
    assert repaired.selector is None and repaired.choose([[1, 2], [3]]).tolist() == [0, 0]
    tokens = torch.tensor([[3, 40, 41, 42, 43]])
    visible = torch.ones(1, 5, 5, dtype=torch.bool).tril()
    inputs = repaired.attention_inputs(visible, torch.arange(5)[None], torch.zeros(1, dtype=torch.long))
    with torch.no_grad():
        ours = repaired.model(input_ids=tokens, **inputs).logits
        base = models.open_model(models.model_folder(compressed), config.model).model
        plain = base(input_ids=tokens).logits
        theirs = PeftModel.from_pretrained(base, repair.path / "own" / "expert_0")(input_ids=tokens).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (ours - plain).abs().max() > 1e-3
    assert repair.read("repair.json")["added"] == 2 * 4 * ((64 + 64) + (128 + 64))  # two layers of the model


def test_a_whole_run_exported_and_loaded(run_here, tmp_path):
    """Measured, its controls, timed, exported as PEFT adapters with what chose, and the same when it is loaded."""
    from idp.export.checkpoint import export
    from idp.export.options import ExportOptions

    record = run_here(*TINY, *EXPERTS, *FAST, "recovery/selector=nearest", "baselines=true")
    about = record["idp"]
    counts = about["selection"]["arc_easy"]
    assert list(counts) == ["expert_0", "expert_1", "expert_2"] and sum(counts.values()) == 8
    centres = 3 * 64
    repair = tmp_path / "outputs" / "store" / "recover" / about["stages"]["recover"]["key"]
    added = json.loads((repair / "repair.json").read_text())["added"]
    assert about["parameters"]["added"] == added + centres and about["selector"]["source"] == "bank"
    assert about["controls"]["prompts"] and len(about["controls"]["heldout_loss"]) == 3
    assert {row["variant"] for row in about["latency"]["rows"]} == {"dense", "compressed", "lowrank_experts"} or {
        row["variant"] for row in about["latency"]["rows"]
    } == {"compressed", "lowrank_experts"}

    folder, out = tmp_path / "outputs" / "runs" / about["name"], tmp_path / "export"
    assert export(ExportOptions(record=str(folder), out=str(out))).difference < 1e-4
    assert sorted(file.name for file in (out / "own").iterdir()) == ["expert_0", "expert_1", "expert_2"]
    assert "low-rank experts" in (out / "README.md").read_text()
    mine, theirs = idp.load(folder), idp.load(out)
    texts = ["The capital of France is", "2 + 2 =", "import numpy as np"]
    assert mine.generate(texts, max_new_tokens=5) == theirs.generate(texts, max_new_tokens=5)


def test_trained_they_start_from_the_closed_form_and_learn(made):
    """The loss on held-out text of its cluster falls; killed and resumed, the files are the same."""
    from safetensors.torch import load_file

    *_, start = made("recovery.experts=2")
    *_, repair = made("recovery.experts=2", *TRAINED)
    histories = repair.read("history.json")
    assert list(histories) == ["expert_0", "expert_1"]
    for history in histories.values():
        assert history["best_loss"] < history["heldout"][0]["loss"] - 0.01
    about = repair.read("repair.json")
    assert about["trainable"] == about["added"] == start.read("repair.json")["added"]
    assert repair.key != start.key and start.read("repair.json")["trainable"] == 0

    steps, killed = [], 0

    def report(row):
        steps.append(row)
        if len(steps) in (9, 30):  # within the first expert's training, and within the second's
            raise Killed

    while killed < 5:
        try:
            *_, resumed = made("recovery.experts=2", *TRAINED, report=report, store="killed")
            break
        except Killed:
            killed += 1
    assert killed == 2
    for expert in ("expert_0", "expert_1"):
        file = f"own/{expert}/adapter_model.safetensors"
        one, other, before = (load_file(each.path / file) for each in (repair, resumed, start))
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert not any(torch.equal(one[name], before[name]) for name in one)


def test_whatever_chooses_among_prompts_chooses_among_experts(run_here):
    for selector in ("arrow", "learned", "likelihood", "random", "fixed", "oracle"):
        record = run_here(*TINY, *EXPERTS, f"recovery/selector={selector}")
        assert sum(record["idp"]["selection"]["arc_easy"].values()) == 8
        assert len(record["idp"]["controls"]["heldout_loss"]) == 3


REFUSED = [
    (["recovery/selector=attention"], "recovery/selector=attention: it reads the attention to prompts"),
    (["recovery.rank=65"], "recovery.rank=65: .* is 32 x 64; use 32 or less"),
    (["recovery.targets=[query]"], "no layer is called query; there are"),
    (["recovery.experts=9999"], "recovery.experts=9999: .*samples=.* sequences cannot make as many"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED)
def test_bad_input(overrides, message, made):
    with pytest.raises(UserError, match=message):
        made(*overrides)
