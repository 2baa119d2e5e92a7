"""Two equal trainings, compared bit for bit: curves and what was trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.gpu.bench import Bench
from tests.gpu.lines import FAILED, OK, Line
from tests.gpu.steps import Step
from tests.gpu.steps.training import IMPORTS, recipe

STEPS = 4


def parts(_: Bench) -> list[str]:
    return ["prompt", "lora"]


def run(part: str, bench: Bench) -> Iterator[Line]:
    from idp.corpora.corpus import named_corpus
    from idp.recover.stage import recover
    from idp.store import Store

    folder = bench.saved_model("two_layers", num_hidden_layers=2)
    config = bench.composed(*recipe(part, bench, STEPS), *bench.corpus())
    text = named_corpus("corpus", config.corpus, None)
    made = []
    for turn in ("one", "other"):
        store = Store(bench.folder / f"store_{turn}")
        dense = bench.product(folder, store)
        made.append(recover(config.recovery, bench.config(folder), dense, text, 0, store, dense=dense))
    curves = [_losses(product.read("history.json")) for product in made]
    apart = [step for step, (a, b) in enumerate(zip(*curves, strict=True), 1) if a != b]
    trained = [_tensors(product.path) for product in made]
    furthest = max(float((trained[0][name] - trained[1][name]).abs().max()) for name in trained[0])
    values = {"largest_difference": furthest, "first_step_apart": apart[0] if apart else None, "steps": STEPS}
    if apart or furthest:
        where = f"from step {apart[0]} on" if apart else "in what was trained alone"
        yield Line(part, f"{furthest:.1e} apart", FAILED, f"two equal trainings differ {where}", values)
    else:
        yield Line(part, f"{STEPS} steps and {len(trained[0])} tensors equal, bit for bit", OK, "", values)


def _losses(history: dict[str, Any]) -> list[tuple[float, float]]:
    return [(row["loss"], row["gradient_norm"]) for curve in history.values() for row in curve["train"]]


def _tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {
        f"{file.relative_to(folder)} {name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


STEP = Step("determinism", 35, parts, run, IMPORTS)
