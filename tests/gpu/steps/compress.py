"""One layer of the shape through each compressor, with the papers' calibration: seconds and the card's peak."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.gpu.bench import Bench
from tests.gpu.lines import OK, SLOW, Line, gib
from tests.gpu.steps import Step

COMPRESSORS = {"gptq3": "gptq3", "sparsegpt50": "sparsegpt50", "joint": "sparsegpt50_gptq4", "awq4": "awq4"}
LONG = 60.0  # seconds for a layer: half an hour and more for a whole model


def parts(_: Bench) -> list[str]:
    return list(COMPRESSORS)


def run(part: str, bench: Bench) -> Iterator[Line]:
    from idp import models
    from idp.compress import stage
    from idp.corpora.corpus import named_corpus
    from idp.memory import device_peaks, peak_bytes
    from idp.store import Store

    folder, store = bench.saved_model("one_layer", num_hidden_layers=1), Store(bench.folder / "store")
    samples, length = bench.size.calibration
    calibration = [f"compressor.calibration.samples={samples}", f"compressor.calibration.length={length}"]
    grouped = [f"compressor.quantization.group_size={bench.size.group_size}"] if part != "sparsegpt50" else []
    composed = bench.composed(f"compressor={COMPRESSORS[part]}", *calibration, *grouped, *bench.corpus())
    compressor, config = composed.compressor, bench.config(folder)
    dense = bench.product(folder, store)
    text = named_corpus("corpus", composed.corpus, None)
    group_size = stage.check(compressor, models.open_empty(folder, config), text)
    started = time.perf_counter()
    product = stage.compress(compressor, group_size, config, dense, text, store)
    bench.synchronise()
    seconds = time.perf_counter() - started
    peak = device_peaks().get("cuda:0", 0) if bench.cuda else peak_bytes()
    weights = product.read("weights.json")
    shown = [f"{seconds:.1f} s", f"peak {gib(peak)}" if bench.cuda else "", f"{samples} x {length} tokens"]
    if weights["sparsity"] > 0.2:
        shown.append(f"{weights['sparsity']:.0%} zeros")
    values = {"seconds": seconds, "peak_bytes": peak, "sparsity": weights["sparsity"]}
    slow = bench.cuda and seconds > LONG
    reason = f"{LONG:.0f} s a layer are half an hour for a model of 32" if slow else ""
    yield Line(part, ", ".join(filter(None, shown)), SLOW if slow else OK, reason, values)


STEP = Step("compress", 80, parts, run, ("transformers.models.llama.modeling_llama", "idp.compress.oneshot"))
