"""`idp bench teacher`: what a cached teacher costs, and how near its loss is to that of the dense model itself.

A copy of the model, its weights rounded to nearest, is held against the model on held-out text: KL(dense || copy) over
the whole vocabulary, and from what is kept. Then one prompt takes steps by the text alone, by a resident teacher and by
a cached one, in turns in one process, on the same batches.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

if TYPE_CHECKING:
    import torch

    from idp.config import Training
    from idp.models import LoadedModel

LM, RESIDENT, CACHED = "lm", "resident", "cached"


def main() -> None:
    """Measures, prints both, and writes the figures as JSON."""
    from idp.store import write_json

    options = _arguments()
    found = run(options)
    print(table(found))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, found)
    print(f"\nwritten: {options.output}")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The figures.

    Returns:
        `loss`: `exact` and `cached`, means in nats per token, and the mass of the most likely tokens; `making`: seconds
        and bytes per token of what is kept; `step_ms` of each way, medians, and `ratio` to the step of plain text.
    """
    import torch

    from benchmarks.beginning import rounded_in_place
    from benchmarks.speed import open_model
    from idp import models
    from idp.recover import cached
    from idp.recover.objective import Objective

    dense, copy = open_model(options), open_model(options)
    rounded_in_place(copy.model, options.bits)
    blocks, training = _blocks(dense, options), _training(options)
    if dense.device.type == "cpu":
        models.keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        cached.write(dense, blocks, training, Path(folder))
        making = time.perf_counter() - started
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        kept = cached.CachedTeacher([Path(folder)])
        with torch.no_grad():
            losses = {
                name: _mean(Objective(training, copy, teacher), copy, blocks, options.batch_size)
                for name, teacher in (("exact", dense), ("cached", kept))
            }
            rest = kept(blocks, torch.device("cpu"))[2].exp().mean().item()
        step_ms = _steps(copy, {LM: None, RESIDENT: dense, CACHED: kept}, blocks, training, options)
    return {
        "loss": {**losses, "mass": 1 - rest},
        "making": {"seconds": making, "bytes": size / blocks.numel(), "tokens": blocks.numel()},
        "step_ms": {name: statistics.median(taken) for name, taken in step_ms.items()},
        "ratio": {
            name: statistics.median(a / b for a, b in zip(taken, step_ms[LM], strict=True))
            for name, taken in step_ms.items()
        },
        "options": {key: value for key, value in vars(options).items() if key != "output"},
        "threads": torch.get_num_threads(),
    }


def table(found: dict[str, Any]) -> str:
    """The figures as text."""
    loss, making, options = found["loss"], found["making"], found["options"]
    rows = [[name, f"{found['step_ms'][name]:.1f}", f"{found['ratio'][name]:.2f}x"] for name in found["step_ms"]]
    return (
        f"KL(dense || {options['bits']} bits): {loss['exact']:.5f} nats per token, cached {loss['cached']:.5f}"
        f" (off by {loss['cached'] - loss['exact']:+.5f}); the most likely tokens have {loss['mass']:.1%} of the mass\n"
        f"kept: {making['bytes']:.0f} bytes and {1000 * making['seconds'] / making['tokens']:.2f} ms per token\n\n"
        + tabulate(rows, headers=["teacher", "median ms", "to lm"], tablefmt="github", disable_numparse=True)
        + f"\n\nbatch {options['batch_size']} x {options['sequence_length']}; {found['threads']} threads"
    )


def _mean(objective: Any, loaded: LoadedModel, blocks: torch.Tensor, rows: int) -> float:
    from idp.beginning import begun
    from idp.recover.live import from_the_start

    total = 0.0
    for part in blocks.split(rows):
        inputs = from_the_start(loaded.model, begun(part, loaded.bos).to(loaded.device))
        total += objective(loaded.model, part.to(loaded.device), inputs).item() * len(part)
    return total / len(blocks)


def _steps(
    loaded: LoadedModel,
    teachers: dict[str, Any],
    blocks: torch.Tensor,
    training: Training,
    options: argparse.Namespace,
) -> dict[str, list[float]]:
    """Milliseconds of every step of each way; the first round warms up."""
    ways: dict[str, Callable[[torch.Tensor], float]] = {
        name: _way(loaded, teacher, training) for name, teacher in teachers.items()
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    batches = blocks.split(options.batch_size)
    for number in range(options.rounds + 1):
        for name, step in ways.items():
            taken = step(batches[number % len(batches)])
            if number:
                found[name].append(1000 * taken)
    return found


def _way(loaded: LoadedModel, teacher: Any, training: Training) -> Callable[[torch.Tensor], float]:
    import torch

    from idp.recover.initial import initial
    from idp.recover.nets.reparameterization import Itself
    from idp.recover.tuning import loss_with

    objective = training if teacher is not None else replace(training, objective="lm")
    maker = Itself(initial(loaded, 20, "vocabulary", "", 0)).to(loaded.device)
    loss = loss_with(loaded, maker, "prompt", objective, teacher)
    optimizer = torch.optim.AdamW(maker.parameters(), lr=1e-3)

    def step(batch: torch.Tensor) -> float:
        started = time.perf_counter()
        found = loss(batch)
        found.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found.item()  # waits for a GPU
        return time.perf_counter() - started

    return step


def _blocks(loaded: LoadedModel, options: argparse.Namespace) -> torch.Tensor:
    """Held-out text of the embedded corpus; any tokens for random weights."""
    import torch

    length, count = options.sequence_length, options.blocks
    if options.shape is not None:
        return torch.randint(10, len(loaded.tokenizer) - 1, (count, length), generator=torch.Generator().manual_seed(0))
    from idp.config import Corpus
    from idp.corpora.corpus import blocks, open_corpus
    from idp.tasks import embedded

    source = Corpus("embedded", "embedded", None, None, None, None, "text", list(embedded.PASSAGES), None)
    return blocks(open_corpus(source, None), "heldout", loaded.tokenizer, length, count, 0)


def _training(options: argparse.Namespace) -> Training:
    from idp.config import Training

    once = dict.fromkeys(("steps", "warmup_steps", "evaluate_every", "heldout_sequences", "checkpoint_every"), 1)
    return Training(
        **once,
        batch_size=options.batch_size,
        sequence_length=options.sequence_length,
        learning_rate=1e-3,
        weight_decay=0.0,
        clip=1.0,
        objective="distill",
        temperature=options.temperature,
        lm_weight=0.0,
        teacher="cached",
        teacher_top=options.top,
    )


def _arguments() -> argparse.Namespace:
    from benchmarks.speed import SHAPES

    parser = argparse.ArgumentParser(prog="idp bench teacher", description=__doc__.split("\n")[0])
    parser.add_argument("--bits", type=int, default=3, help="of the copy's weights")
    parser.add_argument("--top", type=int, default=64, help="most likely tokens that are kept")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--blocks", type=int, default=24, help="of held-out text")
    parser.add_argument("--batch-size", type=int, default=4, help="sequences per step")
    parser.add_argument("--sequence-length", type=int, default=128, help="tokens per sequence")
    parser.add_argument("--rounds", type=int, default=6, help="steps of each way, beside one to warm up")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this shape, not the embedded model")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/teacher.json"), help="where the JSON goes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
