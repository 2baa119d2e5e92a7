"""The compress stage from end to end on a tiny model: what each compressor leaves, and what it refuses."""

import logging
import re
import signal
import time

import pytest
import torch

from idp import models
from idp.compress import recipe, stage
from idp.compress.saved import SavedWeights
from idp.errors import UserError
from idp.records.tables import run_summary
from idp.usage import options

from ..processes import Process

SHIPPED = sorted(set(options("compressor")) - {"none", "external"})
MIXED = [
    ["compressor=sparsegpt50", "compressor.quantization.method=rtn", "compressor.quantization.bits=4"],
    ["compressor=magnitude50", "compressor.quantization.method=awq", "compressor.quantization.bits=4"],
    ["compressor=magnitude50", "compressor.quantization.method=rtn", "compressor.quantization.bits=8"],
    ["compressor=wanda_2of4", "compressor.quantization.method=gptq", "compressor.quantization.bits=3"],
    ["compressor=sparsegpt50_gptq4", "compressor.quantization.bits=3", "compressor.quantization.symmetric=true"],
    ["compressor=sparsegpt50", "compressor.sparsity.pattern='1:4'", "compressor.sparsity.level=0.75"],
    ["compressor=wanda50", "compressor.sparsity.level=0.3"],  # 0.3 * 64 columns is no whole number
    ["compressor=magnitude50", "compressor.sparsity.level=0.333"],
]


@pytest.mark.parametrize("overrides", [*([f"compressor={name}"] for name in SHIPPED), *MIXED], ids=" ".join)
def test_every_compressor_leaves_what_it_claims(overrides, compress_with, compose):
    compressor = compose(*overrides).compressor
    sparsity, quantization = compressor.sparsity, compressor.quantization
    product = compress_with(*overrides)
    weights, saved = product.read("weights.json"), SavedWeights(product.path / "model")
    dense = SavedWeights(compress_with("compressor=none").path / "../../load" / product.manifest["parent"] / "model")
    assert len(weights["layers"]) == 14
    for name, row in weights["layers"].items():
        weight = saved[f"{name}.weight"]
        assert row["sparsity"] == float((weight == 0).double().mean())
        if sparsity.method:
            assert row["sparsity"] >= sparsity.level
        if sparsity.pattern:
            keep, of = map(int, sparsity.pattern.split(":"))
            assert int((weight.view(-1, of) != 0).sum(dim=1).max()) <= keep
        if quantization.method:
            groups = weight.reshape(-1, weights["group_size"])
            assert max(len(group.unique()) for group in groups) == row["distinct_values"] <= 2**quantization.bits
        assert 0 < row["reconstruction_error"] < 1
    assert weights["dead_inputs"] == 0 and weights["not_inverted"] == []
    changed = {name for name in saved._places if not torch.equal(saved[name], dense[name])}
    inside = {f"{name}.weight" for name in weights["layers"]}
    assert inside <= changed
    if quantization.method == "awq":  # norms carry the inverse of the scales
        assert changed - inside and all("layernorm" in name for name in changed - inside)
    else:
        assert changed == inside
    assert (product.path / "grids.safetensors").exists() == bool(quantization.method)


def test_heavier_compression_does_more_damage(compress_with):
    def error(*overrides):
        return compress_with(*overrides).read("weights.json")["reconstruction_error"]

    gptq = [error(f"compressor=gptq{bits}") for bits in (8, 4, 3, 2)]
    pruned = [error(f"compressor=sparsegpt{level}") for level in (50, 62, 75)]
    assert gptq == sorted(gptq) and pruned == sorted(pruned)
    for name in ("gptq", "awq"):  # what looks at data beats what does not
        assert error(f"compressor={name}3") < error("compressor=rtn3")
    assert error("compressor=sparsegpt50") < error("compressor=wanda50") < error("compressor=magnitude50")
    assert error("compressor=sparsegpt50") < error("compressor=sparsegpt_4of8") < error("compressor=sparsegpt_2of4")
    assert max(error("compressor=sparsegpt50"), error("compressor=gptq4")) < error("compressor=sparsegpt50_gptq4")


def test_every_compressor_sees_the_same_blocks(compress_with, monkeypatch, tmp_path):
    from idp.compress import oneshot

    seen, run = [], oneshot.run
    monkeypatch.setattr(oneshot, "run", lambda model, modifiers, inputs: seen.append(inputs) or run(model, [], None))
    monkeypatch.setattr(stage, "check_claims", lambda *_: None)
    monkeypatch.setattr(stage, "freeze", lambda _: {})
    for name in ("gptq4", "sparsegpt50", "wanda_2of4", "awq3", "sparsegpt50_gptq4"):
        compress_with(f"compressor={name}", "compressor.quantization.group_size=-1", folder=tmp_path)
    compress_with("compressor=gptq4", "compressor.calibration.seed=1", folder=tmp_path)
    *same, other = seen
    assert same[0].shape == (8, 64) == other.shape and all(torch.equal(same[0], each) for each in same)
    assert not torch.equal(same[0], other)
    compress_with("compressor=rtn4", folder=tmp_path)
    assert seen[-1] is None


def test_the_same_config_gives_the_same_weights(compress_with, tmp_path):
    one, two = (compress_with("compressor=sparsegpt50_gptq4", folder=tmp_path / name) for name in "ab")
    name = "model/model.safetensors"
    assert one.key == two.key and one.manifest["files"][name] == two.manifest["files"][name]


def test_the_calibration_corpus_may_be_another(compress_with, compose, tmp_path):
    from idp.corpora.corpus import named_corpus, part

    text = tmp_path / "mine.txt"
    text.write_text("\n\n".join(f"Paragraph {number} " + "of my own text, said again. " * 20 for number in range(80)))
    chosen = ["compressor=gptq3", f"compressor.calibration.corpus={text}"]
    own, other = compress_with("compressor=gptq3"), compress_with(*chosen)
    assert own.key != other.key
    assert own.manifest["files"]["model/model.safetensors"] != other.manifest["files"]["model/model.safetensors"]
    config = compose("model=tiny_llama", *chosen)
    read = named_corpus(config.compressor.calibration.corpus, config.corpus, None)
    assert read.name == "mine.txt" and all("my own text" in document for document in part(read, "calibration"))
    assert other.manifest["config"]["calibration"]["corpus"] == read.fingerprint


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["compressor=gptq4", "corpus=local", "corpus.path=SHORT"],
            r"holds \d+ tokens, 8 blocks of 64 need 512: use a",
        ),
        (["compressor=gptq4", "compressor.calibration.length=4096"], r"length=4096: the model's window is 2048; use"),
        (
            ["compressor=sparsegpt50", "compressor.sparsity.pattern='2:5'", "compressor.sparsity.level=0.6"],
            "is 64 wide",
        ),
        (["compressor=gptq3", "compressor.quantization.group_size=24"], r"group_size=24: does not divide model\."),
    ],
)
def test_bad_input_is_refused_before_any_work(overrides, message, compress_with, monkeypatch, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("\n\n".join(f"{number} words." for number in range(20)))
    monkeypatch.setattr(stage, "compress", lambda *_: pytest.fail("it went to work"))
    with pytest.raises(UserError, match=message):
        compress_with(*(word.replace("SHORT", str(short)) for word in overrides))


def test_a_run_whose_weights_do_not_show_the_claim_fails(compress_with, monkeypatch, tmp_path):
    freeze = stage.freeze

    def and_spoil(model):
        grids = freeze(model)
        model.model.layers[1].mlp.up_proj.weight.data[0, ::2] += 1e-3
        return grids

    monkeypatch.setattr(stage, "freeze", and_spoil)
    for name, message in (
        ("wanda50", "49...% zeros, less than"),
        ("sparsegpt_2of4", "zeros, less"),
        ("rtn2", "2 bits"),
    ):
        with pytest.raises(UserError, match=rf"compress: model\.layers\.1\.mlp\.up_proj .*{message}"):
            compress_with(f"compressor={name}", folder=tmp_path)
    assert not list((tmp_path / "compress").glob("*/manifest.json"))


def test_the_record_says_what_the_weights_are(run_here):
    task = ["task=arc_easy", "evaluation.perplexity=[]", "baselines=false", "tracker=none"]
    run = run_here("model=tiny_llama", "budget=smoke", "compressor=wanda_2of4", *task)
    record, weights = run["idp"], run["idp"]["weights"]
    assert weights["sparsity"] == 0.5 and weights["patterns"]["2:4"] == 1 and weights["bits_per_weight"] == 16
    assert weights["effective_bytes"] < weights["packed_bytes"] and "layers" not in weights
    assert set(weights["worst"]) == {"sparsity", "reconstruction_error"}
    assert weights["worst"]["reconstruction_error"]["value"] > weights["reconstruction_error"] > 0
    assert "16.00 bits each, 50.0% zeros, 0.4 MB packed, 0.2 MB with the zeros left out" in run_summary(run)
    assert weights["dead_inputs"] == 0 and record["peak_memory_bytes"]["compress"] > 1e8


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["rtn4", "gptq4", "none"])
def test_weights_that_are_not_finite_are_refused_by_name(value, name, open_tiny, compress_with, tmp_path):
    loaded = open_tiny("llama")
    loaded.model.model.layers[1].mlp.up_proj.weight.data[3, 5] = value
    loaded.model.save_pretrained(tmp_path / "bad")
    loaded.tokenizer.save_pretrained(tmp_path / "bad")
    where = ["model=local", f"model.path={tmp_path / 'bad'}", "model.name=bad", "model.dtype=float32"]
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight .* has 1 weights that are NaN or inf"):
        compress_with(f"compressor={name}", *where, folder=tmp_path / "store")
    assert not list((tmp_path / "store" / "compress").glob("*/manifest.json"))


def test_dead_inputs_are_counted_and_said_once(open_tiny, compress_with, tmp_path, caplog):
    loaded = open_tiny("opt")
    dead = [1, 40, 77]
    first = loaded.model.model.decoder.layers[0].fc1
    first.weight.data[dead], first.bias.data[dead] = 0, -1  # the ReLU never opens
    loaded.model.save_pretrained(tmp_path / "dead")
    loaded.tokenizer.save_pretrained(tmp_path / "dead")
    where = ["model=local", f"model.path={tmp_path / 'dead'}", "model.name=dead", "model.dtype=float32"]
    for name in ("gptq4", "sparsegpt50", "sparsegpt50_gptq4"):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "idp"):
            product = compress_with(f"compressor={name}", *where, folder=tmp_path / "store")
        weights = product.read("weights.json")
        assert weights["layers"]["model.decoder.layers.0.fc2"]["dead_inputs"] == 3 <= weights["dead_inputs"]
        saved = SavedWeights(product.path / "model")["model.decoder.layers.0.fc2.weight"]
        assert (saved[:, dead] == 0).all() and weights["not_inverted"] == []
        (line,) = [entry.getMessage() for entry in caplog.records if entry.name.startswith("idp")]
        assert "dead inputs, zero for every calibration token" in line and "layers" in line


@pytest.mark.parametrize(
    ("name", "where", "message"),
    [
        ("gptq4", "gptq.base.accumulate_hessian", "Hessian inversion failed for 14/14 modules"),
        ("sparsegpt50", "pruning.sparsegpt.base.accumulate_hessian", r"Failed to invert hessian .* \(14 layers\)"),
    ],
)
def test_hessians_that_cannot_be_inverted_are_said_once(name, where, message, compress_with, monkeypatch, tmp_path):
    import importlib

    module = importlib.import_module(f"llmcompressor.modifiers.{where.rsplit('.', 1)[0]}")
    accumulate = module.accumulate_hessian

    def spoilt(*arguments):
        hessian, count = accumulate(*arguments)
        return hessian.fill_(-1.0), count

    monkeypatch.setattr(module, "accumulate_hessian", spoilt)
    said = []
    monkeypatch.setattr(stage.log, "warning", lambda form, *values: said.append(form % values))
    product = compress_with(f"compressor={name}", folder=tmp_path)
    (line,) = product.read("weights.json")["not_inverted"]
    assert re.search(message, line) and said == [f"compress: {line}"]


def test_progress_counts_decoder_layers(open_tiny, calibration, compose):
    class Bar:
        n, total = 0, 2

        def update(self, count):
            self.n += count

    from idp.compress.terminal import counting, quiet

    for name in ("rtn4", "magnitude50", "gptq4", "wanda50", "awq4"):
        model, bar = open_tiny("llama").model, Bar()
        compressor = compose(f"compressor={name}").compressor
        group_size = recipe.check(compressor, model)
        with quiet():
            from idp.compress import oneshot

            modifiers = recipe.build(compressor, group_size, model)
            oneshot.run(model, [*modifiers, counting(bar)], calibration if recipe.needs_data(compressor) else None)
        assert bar.n == bar.total, name


def test_killed_half_way_the_next_start_reads_nothing_half_written(compress_with, tmp_path):
    overrides = ["compressor=gptq4", "model.architecture.num_hidden_layers=8"]
    command = ["-m", "idp.run", "model=tiny_llama", "budget=smoke", "task=arc_easy", *overrides]
    command += ["tracker=none", "evaluation.perplexity=[]", f"output={tmp_path}", f"store={tmp_path / 'store'}"]
    process = Process(*command)
    while not (parts := list((tmp_path / "store" / "compress").glob("*.part"))):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    (part,) = parts
    place = part.with_name(part.name.split(".")[0])
    assert part.is_dir() and not place.exists()
    (part / "model").mkdir(exist_ok=True)
    (part / "model" / "model.safetensors").write_bytes(b"half a checkpoint")
    again = compress_with(*overrides, folder=tmp_path / "store")
    undisturbed = compress_with(*overrides, folder=tmp_path / "undisturbed")
    assert again.path == place and not again.reused and not part.exists()
    assert again.manifest["files"] == undisturbed.manifest["files"]


def test_one_model_in_memory_at_a_time(monkeypatch, compress_with, tmp_path):
    earlier, opened = [], models.open_model

    def open_model(*arguments):
        for model in earlier:
            assert all(parameter.is_meta for parameter in model.parameters()), "the model before still has its weights"
        loaded = opened(*arguments)
        earlier.append(loaded.model)
        return loaded

    monkeypatch.setattr(models, "open_model", open_model)
    for name in ("gptq4", "sparsegpt50_gptq4", "awq4", "rtn4"):
        earlier.clear()
        compress_with(f"compressor={name}", folder=tmp_path)
        assert len(earlier) == 2
