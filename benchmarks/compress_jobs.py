"""What the compression benchmark measures, each piece in a process of its own so that its peak memory is its own."""

from __future__ import annotations

import json
import math
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

VOCABULARY = 257


def in_its_own_process(job: dict[str, Any]) -> dict[str, Any]:
    """Runs `job` in a new interpreter; its findings, with `peak_bytes` of that process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compress_jobs", json.dumps(job)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{job}: {done.stderr.strip().splitlines()[-1]}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(job: dict[str, Any]) -> dict[str, Any]:
    """One compressor on one model, by this project (`way=ours`) or by llmcompressor called plainly (`way=plain`).

    Where it prunes and quantises there is a third way, `mask_after`: plainly, with the mask once more in each layer.

    Returns:
        `perplexity`, `seconds` to compress, and the smallest layer's `sparsity`.
    """
    import torch

    from idp import models
    from idp.compress import recipe
    from idp.compress.terminal import quiet
    from idp.corpora.corpus import blocks, named_corpus
    from idp.store import Store

    config = _config(job)
    dense = models.load(config.model, models.find_model(config.model), Store(config.store))
    loaded = models.open_model(models.model_folder(dense), config.model)
    calibration = named_corpus(config.compressor.calibration.corpus or "corpus", config.corpus, None)
    inputs = blocks(calibration, "calibration", loaded.tokenizer, job["length"], job["samples"], job["seed"])
    scored = named_corpus(job["perplexity"], config.corpus, None)
    windows = blocks(scored, "perplexity", loaded.tokenizer, job["window"], job["windows"], 0, at_most=True)
    group_size = recipe.check(config.compressor, loaded.model)
    layers = recipe.compressed_layers(loaded.model)
    with quiet():
        seconds = _timed(job["way"], config.compressor, group_size, loaded.model, inputs)
    with torch.inference_mode():
        found = {"perplexity": _perplexity(loaded.model, windows), "seconds": seconds}
        if job["way"] != "plain":
            found["sparsity"] = min(float((layer.weight == 0).double().mean()) for layer in layers.values())
        else:
            found["sparsity"] = min(_sparsity_in_use(layer) for layer in layers.values())
    return found


def grow(job: dict[str, Any]) -> dict[str, Any]:
    """A Llama of random weights through the compress stage: seconds, peak bytes, and the model's own bytes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from idp import models
    from idp.compress import recipe, stage
    from idp.compress.terminal import quiet
    from idp.models import LoadedModel, byte_tokenizer

    width = job["width"]
    shape = AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 64 * 64,
        num_hidden_layers=job["layers"],
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(shape, dtype=torch.float32).save_pretrained(Path(folder) / "dense")
        byte_tokenizer().save_pretrained(Path(folder) / "dense")
        config = _config(job)
        inputs = torch.randint(1, VOCABULARY, (job["samples"], job["length"]))
        with quiet():
            from idp.compress import oneshot  # noqa: F401  its import is no part of the context
        before = _peak()
        started = time.perf_counter()
        loaded: LoadedModel = models.open_model(Path(folder) / "dense", config.model)
        size = sum(parameter.nbytes for parameter in loaded.model.parameters())
        group_size = recipe.check(config.compressor, loaded.model)
        stage._apply(config.compressor, group_size, loaded, inputs, Path(folder))
        return {"seconds": time.perf_counter() - started, "model_bytes": size, "peak_bytes_before": before}


def _config(job: dict[str, Any]) -> Any:
    import hydra

    from idp.checks import check
    from idp.config import conf_dir
    from idp.registry import register

    register(job["overrides"])
    with hydra.initialize_config_dir(str(conf_dir().absolute()), version_base="1.3"):
        return check(hydra.compose("config", overrides=job["overrides"]))


def _timed(way: str, compressor: Any, group_size: int | None, model: Any, inputs: Any) -> float:
    """Seconds to compress `model` in place; all ways are given the same blocks in the same batches.

    The batches matter: in bfloat16 another composition gives activations other last digits, and from there a rounding
    falls the other way and its error goes on from layer to layer, to a percent or two of perplexity at 3 bits.
    """
    from idp.compress import oneshot, recipe
    from idp.compress.dead import DeadInputs
    from idp.compress.freeze import freeze

    modifiers = recipe.build(compressor, group_size, model)
    if way != "plain":
        names = list(recipe.compressed_layers(model))
        if way == "mask_after":
            from benchmarks.mask_after import mask_after

            modifiers = mask_after([_plain(modifier) for modifier in modifiers], names)
        started = time.perf_counter()
        if recipe.needs_data(compressor):
            watching = oneshot.Watching().of({name: DeadInputs() for name in names})
            oneshot.run(model, [watching, *modifiers], inputs)
        else:
            oneshot.run(model, modifiers, None)
        freeze(model)
        return time.perf_counter() - started

    import llmcompressor
    from torch.utils.data import DataLoader

    plain = [_plain(modifier) for modifier in modifiers]
    data = {}
    if recipe.needs_data(compressor):
        samples = [{"input_ids": row, "attention_mask": row.new_ones(row.shape)} for row in inputs]
        data = {
            "dataset": DataLoader(samples, batch_size=max(1, oneshot.BATCH_TOKENS // inputs.shape[1]), shuffle=False),
            "num_calibration_samples": len(samples),
            "max_seq_length": inputs.shape[1],
        }
    started = time.perf_counter()
    llmcompressor.oneshot(model=model, recipe=plain, pipeline="sequential" if data else "datafree", **data)
    return time.perf_counter() - started


def _plain(modifier: Any) -> Any:
    """llmcompressor's own modifier in place of one that this project derives from it."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.pruning import SparseGPTModifier

    from idp.compress.joint import MaskedGPTQModifier, SharingSparseGPTModifier

    for ours, theirs in ((MaskedGPTQModifier, GPTQModifier), (SharingSparseGPTModifier, SparseGPTModifier)):
        if isinstance(modifier, ours):
            return theirs(**modifier.model_dump(exclude_unset=True))
    return modifier


def _sparsity_in_use(layer: Any) -> float:
    """Of the weight that llmcompressor's forward pass uses, which for some methods is not `weight`."""
    from compressed_tensors.quantization.lifecycle.forward import forward_quantize

    scheme, weight = getattr(layer, "quantization_scheme", None), layer.weight
    if scheme is not None:
        weight = forward_quantize(layer, weight, "weight", scheme.weights)
    return float((weight == 0).double().mean())


def _perplexity(model: Any, windows: Any) -> float:
    from torch.nn.functional import cross_entropy

    total = 0.0
    for rows in windows.to(model.device).split(2):
        logits = model(rows).logits[:, :-1].float()
        total += float(cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum"))
    return math.exp(total / windows[:, 1:].numel())


def _peak() -> int:
    """The largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    result = {"compare": compare, "grow": grow}[asked["kind"]](asked)
    print(json.dumps({**result, "peak_bytes": _peak()}))
