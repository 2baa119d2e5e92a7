"""GPTQ, SparseGPT and Wanda with few calibration tokens, against what they are without any.

    python experiments/few_tokens/measure.py c4.jsonl

The model is the embedded one; the file has a document's `text` in each line. Takes about ten minutes on one core.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs
from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import sparsify_weight
from tabulate import tabulate
from transformers import AutoModelForCausalLM, AutoTokenizer

from idp import models
from idp.compress.joint import quantize_kept
from idp.config import Model
from idp.store import Store

LAYERS = ("10.mlp.up_proj", "10.mlp.down_proj", "25.mlp.down_proj")
TOKENS = (1, 4, 16, 64, 256, 512, 1024, 4096)
HELD_OUT, ROWS, LENGTH, BITS, GROUP = 4000, 40, 512, 3, 64


def main(file: str) -> None:
    """Prints the errors on held-out tokens as multiples of those with `X = I`."""
    lines = []
    for name, (weight, inputs) in inputs_of(Path(file)).items():
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
        held, pool = inputs[order[:HELD_OUT]], inputs[order[HELD_OUT:]]
        nothing = torch.eye(weight.shape[1])
        for method in (gptq, sparsegpt, wanda):
            plain = error(weight, method(weight, nothing), held)
            few = (pool[:count] for count in TOKENS)
            line = [error(weight, method(weight, x.T @ x), held) / plain for x in few]
            lines.append([name, weight.shape[1], method.__name__, *line])
    print(tabulate(lines, headers=["layer", "columns", "method", *TOKENS], tablefmt="github", floatfmt=".2f"))


def inputs_of(file: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Weight [rows, columns] and inputs [tokens, columns] of each of `LAYERS`."""
    config = Model(name="smollm2_135m", source="embedded", dtype="float32")
    with tempfile.TemporaryDirectory() as place:
        folder = models.model_folder(models.load(config, models.find(config), Store(place)))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "\n\n".join(json.loads(line)["text"] for line in file.read_text().splitlines()[:200])
    ids = tokenizer(text, return_tensors="pt")["input_ids"][0][: ROWS * LENGTH].view(ROWS, LENGTH)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in LAYERS}
    for name, calls in seen.items():
        layer = model.model.layers.get_submodule(name)
        layer.register_forward_hook(lambda _, given, output, calls=calls: calls.append(given[0].flatten(0, 1)))
    for rows in ids.split(8):
        model.model(rows)
    return {name: (model.model.layers.get_submodule(name).weight, torch.cat(calls)) for name, calls in seen.items()}


def gptq(weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """At `BITS` in groups of `GROUP`."""
    grouped = weight.unflatten(1, (-1, GROUP))
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    scale, lowest = (high - low) / (2**BITS - 1), -(2 ** (BITS - 1))
    zero = (lowest - low / scale).round().clamp(lowest, -lowest - 1)
    grid = QuantizationArgs(
        num_bits=BITS, type="int", symmetric=False, strategy="group", group_size=GROUP, actorder="static"
    )
    kept = torch.ones_like(weight, dtype=torch.bool)
    return quantize_kept(weight.clone(), hessian.clone(), kept, scale, zero, grid)[0]


def sparsegpt(weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Half of the weights to zero."""
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    return sparsify_weight(layer, {layer: hessian.clone()}, 0.5, 0, 0, 128, 0.01, False)[1]


def wanda(weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Half of each row's weights to zero."""
    order = (weight.abs() * hessian.diagonal().sqrt()).argsort(dim=1)
    return weight.scatter(1, order[:, : weight.shape[1] // 2], 0.0)


def error(weight: torch.Tensor, other: torch.Tensor, inputs: torch.Tensor) -> float:
    """`||X (W - W')^T||^2`."""
    return float((inputs @ (weight - other).T).detach().square().sum())


if __name__ == "__main__":
    with torch.inference_mode():
        main(*sys.argv[1:])
