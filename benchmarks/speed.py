"""`idp bench`, or `idp bench speed`: prints the tables that the README quotes, and writes them as JSON.

On a machine with a GPU the same command uses it, and `--shape llama_7b` takes a model of LLaMA-7B's shape with random
weights, so that speed at the papers' scale can be measured without its weights.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

from idp.plan.shapes import SHAPES

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")

SHAPES = SHAPES | {
    "tiny": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
}


def main() -> None:
    """Scoring, then latency; tables on standard output."""
    options = _arguments()
    from benchmarks import scoring
    from idp.evaluate.latency import backend
    from idp.prompting.repaired import RepairedModel
    from idp.records.scores import NINE
    from idp.status import set_up_logging
    from idp.store import write_json

    set_up_logging()
    loaded = open_model(options)
    tasks = scoring.find(options.tasks or NINE, 0, options.documents, options.data_dir)
    if not options.tasks:
        tasks += scoring.find(["arc_easy", "arc_challenge"], 5, options.documents, options.data_dir)
    rates = scoring.run(
        loaded,
        tasks,
        lengths=options.lengths,
        rounds=options.rounds,
        batch_tokens=options.batch_tokens,
        hflm_batch=options.hflm_batch,
    )
    found: dict[str, Any] = {
        "options": {key: value for key, value in vars(options).items() if key != "output"},
        "backend": backend(RepairedModel(loaded)),
        "scoring": [_row(timed, rates["matmul_flops"]) for timed in tasks],
        **rates,
    }
    found["profile"] = {
        timed.name: scoring.where_time_goes(
            timed, scoring.make_scorers(loaded, options.lengths, options.batch_tokens)["none"]
        )
        for timed in tasks
        if timed.kind == "loglikelihood"
    }
    found["whole"] = _whole(tasks, rates["matmul_flops"])
    few = scoring.find(options.tasks or NINE, 0, options.agreement_documents, options.data_dir)
    found["agreement"] = [scoring.agreement(loaded, few, options.batch_tokens, options.hflm_batch)]
    if found["agreement"][0]["dtype"] != "float32" and options.shape is None:
        loaded.model.float()
        found["agreement"].append(scoring.agreement(loaded, few, options.batch_tokens, options.hflm_batch))
        loaded = open_model(options)
    found["latency"] = _latency(loaded, options)
    _print(found)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, found)
    print(f"\nwritten: {options.output}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="idp bench", description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, default=48, help="documents per task; half as many where it generates")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of all tasks and ways")
    parser.add_argument("--lengths", type=int, nargs="+", default=[25, 25, 25, 25], help="tokens of each prompt")
    parser.add_argument("--tasks", nargs="+", help="lm-eval tasks; default: the nine, and two with 5 shots")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens per forward pass of ours")
    parser.add_argument("--hflm-batch", type=int, default=16, help="rows per forward pass of lm-eval's HFLM")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this shape, not the embedded model")
    parser.add_argument("--data-dir", help="folder of task data")
    parser.add_argument(
        "--agreement-documents", type=int, default=8, help="documents per task compared answer by answer"
    )
    parser.add_argument("--latency-rounds", type=int, default=15, help="rounds of the latency table")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/bench.json"), help="where the JSON goes")
    options = parser.parse_args()
    if options.latency_rounds < 2:
        parser.error(f"--latency-rounds {options.latency_rounds}: spread needs 2 or more")
    return options


def open_model(options: argparse.Namespace) -> Any:
    """The embedded model, or random weights of a shape with a tokenizer of bytes."""
    from benchmarks.random_model import random_model
    from idp import models
    from idp.config import Model
    from idp.store import Store

    config = Model("bench", "embedded", None, None, options.dtype, "auto", None, False, "auto", {})
    if options.shape is not None:
        return random_model(SHAPES[options.shape], models.dtype_of(config), models.device_of(config))
    product = models.load(config, models.find_model(config), Store("outputs/store"))
    return models.open_model(models.model_folder(product), config)


def _latency(loaded: Any, options: argparse.Namespace) -> dict[str, Any]:
    """The model alone, one prompt, IDP, and LoRA in its layers, all untrained: training does not change speed."""
    from peft import LoraConfig, get_peft_model

    from benchmarks.scoring import make_scorers
    from idp.config import Latency
    from idp.evaluate.latency import measure_latency
    from idp.models import LoadedModel
    from idp.prompting.repaired import RepairedModel
    from idp.prompting.variants import Attached, Variants

    scorers = make_scorers(loaded, options.lengths, options.batch_tokens)
    ways = {"compressed": "none", "prompt": "prompt", "idp": "idp"}
    variants = Variants(**{name: scorers[way].engine.repaired for name, way in ways.items()})
    with Attached(loaded.model) as attached:
        adapted = get_peft_model(
            loaded.model,
            LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
            autocast_adapter_dtype=False,
        )
    base = adapted.get_base_model().eval().requires_grad_(False)
    variants.attached, variants.adapted = attached, {"lora"}
    variants["lora"] = RepairedModel(LoadedModel(base, loaded.tokenizer))
    return measure_latency(variants, Latency(True, [1, 8], [128], 16, 3, options.latency_rounds, False, "eager"))


def _row(timed: Any, peak: float) -> dict[str, Any]:
    """One task: ratios of seconds taken in the same round, and tokens run."""
    pairs = {way: timed.seconds[way] for way in timed.seconds}
    seconds = {way: statistics.median(values) for way, values in pairs.items()}
    row = {
        "task": timed.name,
        "runs": timed.source.runs,
        "documents": timed.documents,
        "documents_in_split": timed.source.documents,
        "seconds": seconds,
        "speed": _ratio(pairs["hflm"], pairs["none"]),
        **_prompt_costs(timed.best),
        "tokens": timed.tokens,
    }
    if timed.flops:
        row["share_of_matmul_rate"] = timed.flops / timed.best["none"] / peak
    return row


def _ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def _prompt_costs(best: dict[str, float]) -> dict[str, float]:
    """What prompts add to the time without one.

    They are a few percent, less than this kind of machine's noise, which only ever adds time: so the shortest of
    several runs of each way are compared, not the medians.
    """
    return {
        "prompt_cost": best["prompt"] / best["none"] - 1,
        "idp_cost": best["idp"] / best["none"] - 1,
        "idp_over_prompt": best["idp"] / best["prompt"] - 1,
    }


def _whole(tasks: list[Any], peak: float) -> dict[str, float]:
    """The zero-shot tasks together, each weighted by the size of its full split."""
    from benchmarks.scoring import OURS

    tasks = [timed for timed in tasks if not timed.fewshot]
    weights = [timed.source.documents / timed.documents for timed in tasks]

    def total(way: str, place: int) -> float:
        return sum(weight * timed.seconds[way][place] for weight, timed in zip(weights, tasks, strict=True))

    rounds = range(len(tasks[0].seconds["none"]))
    none, hflm = ([total(way, place) for place in rounds] for way in ("none", "hflm"))
    found = {"speed": _ratio(hflm, none), "hours": statistics.median(none) / 3600}
    scored = [timed for timed in tasks if timed.kind == "loglikelihood"]
    if scored:
        # What prompts cost is read off the scored tasks: with another prompt a model generates another text.
        pairs = [(weight, timed) for weight, timed in zip(weights, tasks, strict=True) if timed in scored]
        found |= _prompt_costs({way: sum(weight * timed.best[way] for weight, timed in pairs) for way in OURS}) | {
            "share_of_matmul_rate": sum(t.flops for t in scored) / sum(t.best["none"] for t in scored) / peak,
        }
    return found


def _costs(row: dict[str, Any]) -> list[str]:
    """Cells of what prompts cost and of the share of the matmul rate; empty for generation."""
    if "share_of_matmul_rate" not in row:
        return ["", "", "", ""]
    costs = [f"{row[key]:+.1%}" for key in ("prompt_cost", "idp_cost", "idp_over_prompt")]
    return [*costs, f"{row['share_of_matmul_rate']:.0%}"]


def _print(found: dict[str, Any]) -> None:
    from idp.records.tables import latency_table

    lines = []
    for row in found["scoring"]:
        saved = f"{row['tokens']['hflm'] / row['tokens']['none']:.2f}x" if "share_of_matmul_rate" in row else ""
        lines.append([row["task"], f"{row['speed']:.2f}x", saved, *_costs(row)])
    lines.append(["zero-shot tasks, full splits", f"{found['whole']['speed']:.2f}x", "", *_costs(found["whole"])])
    headers = [
        "task",
        "speed against HFLM",
        "tokens saved",
        "cost of a prompt",
        "of IDP",
        "IDP over a prompt",
        "of matmul rate",
    ]
    print(tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True))
    for task, shares in found["profile"].items():
        print(f"\nwhere our time goes on {task}: " + ", ".join(f"{name} {share:.0%}" for name, share in shares), end="")
    print()
    ran = found["backend"]
    rate = found["matmul_flops"] / 1e9
    print(f"\n{ran['dtype']} on {ran['device']}, {ran['threads']} threads; matmul {rate:.0f} GFLOP/s")
    for row in found["agreement"]:
        print(
            f"{row['dtype']}: same choice as HFLM for {row['same_choice']} of {row['documents']} documents, largest"
            f" difference {row['largest_difference']:.1e} nats; same text for {row['same_text']} of {row['generated']}"
        )
    print(f"\n{latency_table(found['latency'])}")


if __name__ == "__main__":
    main()
