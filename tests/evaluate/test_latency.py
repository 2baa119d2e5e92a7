"""Latency: every model in every round, percentiles as they should be, and decoding that is really decoding."""

from dataclasses import replace

import pytest
import torch

from idp.config import Latency
from idp.errors import UserError
from idp.evaluate import graph, latency, stage
from idp.evaluate.generation import prefill, step
from idp.evaluate.graph import FixedDecoding
from idp.prompting.repaired import RepairedModel
from idp.prompting.selectors.attention import Attention
from idp.records.tables import latency_table, run_summary
from idp.store import Store

from ..conftest import FAMILIES
from ..prompting.test_prefix import plain_logits


def test_every_variant_has_its_row(open_tiny, make_bank):
    loaded = open_tiny("llama")
    bank = make_bank(loaded, [4, 9])
    variants = {
        "compressed": RepairedModel(loaded),
        "prompt": RepairedModel(loaded, make_bank(loaded, [4])),
        "idp": RepairedModel(loaded, bank, Attention()),
    }
    found = latency.measure_latency(variants, Latency(True, [1, 2], [8], 3, 1, 4, True))
    assert [(row["variant"], row["batch_size"]) for row in found["rows"]] == [
        (name, size) for size in (1, 2) for name in variants
    ]
    assert found["reference"] == "compressed" and found["backend"]["dtype"] == "float32"
    for row in found["rows"]:
        for part in ("prefill", "decode"):
            assert 0 < row[part]["p50"] <= row[part]["p90"] <= row[part]["p99"]
        if row["variant"] == "compressed":
            assert row["prefill"]["ratio"] == row["decode"]["ratio"] == 1.0


def test_rounds_are_interleaved(open_tiny, monkeypatch):
    order = []
    monkeypatch.setattr(latency, "_time", lambda model, *_: (order.append(model), ((1.0, 1.0), 0))[1])
    loaded = open_tiny("llama")
    variants = {name: RepairedModel(loaded) for name in "abc"}
    latency.measure_latency(variants, Latency(True, [1], [8], 1, 0, 3, True))
    names = {id(model): name for name, model in variants.items()}
    assert "".join(names[id(model)] for model in order) == "abcbcacab"


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_in_fixed_buffers_give_the_logits_of_eager_ones(family, open_tiny, make_bank):
    """What a CUDA graph replays, without the graph: with a prompt and without, past the sliding window."""
    loaded = open_tiny(family)
    tokens = torch.tensor([[3, 4, 8, 5, 6, 7], [9, 10, 11, 12, 13, 14]])
    for repaired, choice in (
        (RepairedModel(loaded), None),
        (RepairedModel(loaded, make_bank(loaded, [4, 9]), Attention()), torch.tensor([1, 0])),
    ):
        with torch.inference_mode():
            eager = prefill(repaired, tokens, None, choice)
            fixed = FixedDecoding(repaired, prefill(repaired, tokens, None, choice), 16)
            addresses = [tensor.data_ptr() for tensor in (*fixed._counters, fixed.cache.layers[0].keys)]
            for _ in range(16):
                newest = eager.logits.argmax(dim=-1)
                assert torch.equal(newest, fixed.newest)
                step(repaired, eager, newest)
                fixed.step()
                torch.testing.assert_close(fixed.logits, eager.logits, atol=1e-5, rtol=1e-5)
            assert addresses == [tensor.data_ptr() for tensor in (*fixed._counters, fixed.cache.layers[0].keys)]


def test_a_graph_is_refused_where_there_is_none(open_tiny):
    loaded = open_tiny("llama")
    options = Latency(True, [1], [8], 3, 1, 4, True, "graph")
    with pytest.raises(UserError, match=r"latency.decode=graph: a CUDA graph needs a CUDA device, .* on cpu; use"):
        latency.measure_latency({"compressed": RepairedModel(loaded)}, options)
    card = torch.device("cuda")
    graph.check(loaded.model, card)
    loaded.model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(UserError, match=r"LlamaForCausalLM has rotary frequencies \(dynamic\) that change"):
        graph.check(loaded.model, card)


def test_a_run_refuses_a_graph_before_it_compresses(run_here):
    with pytest.raises(UserError, match="latency.decode=graph: a CUDA graph needs a CUDA device"):
        run_here("model=tiny_llama", "budget=smoke", "recovery=none", "latency=default", "latency.decode=graph")


def test_percentiles():
    values = [float(value) for value in range(1, 101)]
    assert latency.percentile(values, 0.5) == 50.5
    assert latency.percentile(values, 0.99) == pytest.approx(99.01)
    assert latency.percentile([3.0], 0.9) == 3.0


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_and_steps_give_the_plain_logits(family, open_tiny, make_bank):
    """With a prompt per row and without, padded and not, past the sliding window."""
    loaded = open_tiny(family)
    bank = make_bank(loaded, [4, 9])
    tokens = torch.tensor([[0, 0, 0, 5, 6, 7], [9, 10, 11, 12, 13, 14]])
    real = torch.tensor([[False] * 3 + [True] * 3, [True] * 6])
    new = torch.arange(20, 52).view(16, 2)
    for repaired, choice in ((RepairedModel(loaded), None), (RepairedModel(loaded, bank, Attention()), [1, 0])):
        state = prefill(repaired, tokens, real, None if choice is None else torch.tensor(choice))
        for newest in new:
            step(repaired, state, newest)
        for row in range(2):
            whole = [*tokens[row][real[row]].tolist(), *new[:, row].tolist()]
            prompt = torch.zeros(0, 64) if choice is None else bank.prompts[choice[row]]
            expected = plain_logits(loaded, prompt, whole)[-1]
            torch.testing.assert_close(state.logits[row], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("recovery", "variants"),
    [("idp", {"compressed", "prompt", "idp", "dense"}), ("lora", {"compressed", "lora", "lora_merged", "dense"})],
)
def test_a_run_records_latency(recovery, variants, run_here):
    options = ("latency=default", "latency.rounds=3", "latency.new_tokens=2", "tracker=none", "task=arc_easy")
    if recovery == "idp":
        options += ("recovery.controls=false",)
    record = run_here("model=tiny_llama", "budget=smoke", "compressor=gptq3", f"recovery={recovery}", *options)
    measured = record["idp"]["latency"]
    assert {row["variant"] for row in measured["rows"]} == variants
    assert measured["by_shape"] == {name: "compressed" for name in variants if name in ("dense", "lora_merged")}
    assert measured["backend"]["decode"] == "eager"
    shown = run_summary(record)
    assert "prefill ratio" in shown and "weights decompressed" in shown
    assert "the same kernels, timed on the weights of compressed" in shown and "peak GiB" not in shown


def test_a_card_has_peaks_and_its_gaps_are_named():
    times = {"ratio": 1.0, "p50": 2.0, "p90": 2.0, "p99": 2.0}
    row = {"variant": "compressed", "batch_size": 1, "input_tokens": 8, "prefill": times, "decode": times}
    ran = {"library": "torch", "device": "A card", "dtype": "bfloat16", "attention": "sdpa"}
    found = {
        "backend": ran | {"decode": "eager"},
        "reference": "compressed",
        "rows": [row | {"peak_memory_bytes": 2**31}],
    }
    heading, _, line = (text.split("|") for text in latency_table(found).splitlines()[:3])
    assert (heading[-2].strip(), line[-2].strip()) == ("peak GiB", "2.0")
    assert "decode is launched by the host, whose gaps are in its times" in latency_table(found)
    found["backend"]["decode"] = "graph"
    assert "decode replays a CUDA graph" in latency_table(found)
    older = {"backend": ran, "reference": "compressed", "rows": [row | {"peak_memory_bytes": None}]}
    assert "gaps" not in latency_table(older) and "timed on" not in latency_table(older)


def test_a_card_is_in_the_key_and_a_cpu_is_as_ever(monkeypatch, tmp_path, compose):
    """What was measured on one card does not pass for another's; nor does a graph for eager steps."""
    config = compose("model=tiny_llama", "latency=default")
    monkeypatch.setattr(latency, "measure_latency", lambda *_: {"rows": []})

    def key(**change):
        options = replace(config.latency, **change)
        return stage.time_models(dict, ["parent"], options, config.model, Store(tmp_path)).manifest["config"]

    plain = key()
    assert set(plain) == {"options", "machine", "dtype", "device"} and "decode" not in plain["options"]
    assert key(decode="graph")["options"]["decode"] == "graph"
    monkeypatch.setattr(latency, "card", lambda device: "A card")
    assert key()["cards"] == ["A card"]
