"""Latency: every model in every round, percentiles as they should be, and decoding that is really decoding."""

import pytest
import torch

from idp.config import Latency
from idp.evaluate import latency
from idp.evaluate.generation import prefill, step
from idp.prompting.repaired import RepairedModel
from idp.prompting.selectors.attention import Attention
from idp.report.tables import run_summary

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
    record = run_here("model=tiny_llama", "budget=smoke", "compressor=gptq3", f"recovery={recovery}", *options)
    measured = record["idp"]["latency"]
    assert {row["variant"] for row in measured["rows"]} == variants
    shown = run_summary(record)
    assert "prefill ratio" in shown and "weights decompressed" in shown
