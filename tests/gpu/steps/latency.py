"""IDP's prefill and decoding against one prompt, against LoRA beside the weights and LoRA merged into them.

All of them run on one set of weights. Merged, LoRA is a model of the same shape as the bare one, and its time that.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from tests.gpu.bench import Bench, once
from tests.gpu.lines import OK, SLOW, Line
from tests.gpu.steps import Step

BATCHES = (1, 8)
TOKENS, NEW = 128, 16
NEAR = 1.1  # what choosing among prompts may add to one prompt


def parts(_: Bench) -> list[str]:
    return [f"batch {rows}" for rows in BATCHES]


def run(part: str, bench: Bench) -> Iterator[Line]:
    from idp.analyze.papers import FASTER
    from idp.config import Latency
    from idp.evaluate.latency import measure_latency

    rows = int(part.split()[1])
    tokens = TOKENS if bench.cuda else 16
    options = Latency(True, [rows], [tokens], NEW if bench.cuda else 2, 2 if bench.cuda else 1, bench.size.rounds, True)
    found = {row["variant"]: row for row in measure_latency(once(_variants, bench), options)["rows"]}
    for phase in ("prefill", "decode"):
        times = {name: row[phase]["p50"] for name, row in found.items()}
        over = {name: times["idp"] / times[name] for name in ("prompt", "lora", "lora_merged")}
        figure = (
            f"{', '.join(f'{name} {taken:.2f}' for name, taken in times.items())} ms; IDP {over['prompt']:.2f}x one"
            f" prompt, {over['lora']:.2f}x LoRA (the papers: {1 - FASTER:.2f}x), {over['lora_merged']:.2f}x merged LoRA"
        )
        dear = bench.cuda and over["prompt"] > NEAR
        reason = f"choosing costs more than {NEAR - 1:.0%} of one prompt" if dear else ""
        values = {"milliseconds": times, "idp_over": over}
        yield Line(f"{part}, {phase}", figure, SLOW if dear else OK, reason, values)


def _variants(bench: Bench) -> dict[str, Any]:
    """The bare model, and it behind one prompt, behind IDP's bank, and with LoRA's layers, beside and merged."""
    from peft import LoraConfig, get_peft_model

    from benchmarks.scoring import make_scorers
    from idp.models import LoadedModel
    from idp.prompting.repaired import RepairedModel

    loaded = bench.model()
    scorers = make_scorers(loaded, bench.size.lengths, 4096)
    ways = {"compressed": "none", "prompt": "prompt", "idp": "idp"}
    variants = {name: scorers[way].engine.repaired for name, way in ways.items()}
    for name in ("lora", "lora_merged"):
        adapted = get_peft_model(
            sharing_weights(loaded.model),
            LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
            autocast_adapter_dtype=False,
        )
        # What is merged is zero, as every adapter begins: the weights, which all share, stay what they are.
        model = adapted.merge_and_unload() if name == "lora_merged" else adapted.get_base_model()
        variants[name] = RepairedModel(LoadedModel(model.eval().requires_grad_(False), loaded.tokenizer))
    return variants


def sharing_weights(model: Any) -> Any:
    """A model of the same modules anew, whose parameters and buffers are those of `model`, not copies."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


IMPORTS = ("transformers.models.llama.modeling_llama", "peft", "lm_eval.models.huggingface", "benchmarks.scoring")
STEP = Step("latency", 45, parts, run, IMPORTS)
