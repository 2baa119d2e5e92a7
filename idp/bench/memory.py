"""`python -m idp.bench.memory`: a card's memory that a training step takes, for models of 1 to 13 billion weights.

The step is the real one, forward, backward and the optimizer's, on `meta` tensors (`idp.bench.meta`): no card and no
weights are needed. Peaks count every tensor to the byte, and not what a card holds beside them (`BESIDE`).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from idp.bench.shapes import SHAPES, config_of

if TYPE_CHECKING:
    import torch

    from idp.bench.meta import Peak
    from idp.models import LoadedModel
    from idp.recover.fitting import Loss

GIB = 2**30
CARDS = (24, 48, 80)  # GB as they are sold, which is their memory in GiB or a little less
BESIDE = 1.5  # GiB: the CUDA context, workspaces of kernels, and what the allocator rounds up and cannot reuse
RECOVERIES = ("prompt", "prefix", "lora", "distilled prompt")
PLAIN, CHECKPOINTED = "plain", "checkpointing"
TARGETS = ("q_proj", "v_proj")  # as conf/recovery/lora.yaml has them, and its rank
RANK, ALPHA, DROPOUT = 8, 16.0, 0.05


@dataclass
class Step:
    """What a step is of: `budget=paper`, unless something else is said.

    `recovery` is one of `RECOVERIES`; `rows` and `micro` are sequences of a batch and of a pass; `length` is the
    prompt's or prefix's in tokens.
    """

    shape: str
    recovery: str
    rows: int = 2
    tokens: int = 1024
    length: int = 100
    micro: int | None = None
    checkpointing: bool | None = False
    teacher: str = "resident"
    dtype: str = "bfloat16"
    layers: int | None = None  # another number of decoder layers than the shape's


def main() -> None:
    """Prints a table and writes the figures as JSON."""
    options = _arguments()
    from idp.store import write_json

    found = []
    for shape in options.shapes:
        for recovery in RECOVERIES:
            step = Step(shape, recovery, options.rows, options.tokens, options.length)
            found.append(peaks(step))
            print(f"{shape} {recovery}: done", file=sys.stderr)
    print(table(found))
    print(
        f"\n{options.rows} x {options.tokens} tokens, {options.length} prompt tokens, bfloat16; GiB. A card holds a"
        f" step whose peak and {BESIDE} GiB (CUDA context, workspaces, rounding) are within its memory."
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, {"peaks": found, "options": {**vars(options), "output": str(options.output)}})
    print(f"written: {options.output}", file=sys.stderr)


def peaks(step: Step) -> dict[str, Any]:
    """The peaks of a step in bytes: as it is, and with layers computed anew and a streamed teacher."""
    plain, saved = peak_of(step), peak_of(replace(step, checkpointing=True, teacher="streamed"))
    return {
        "shape": step.shape,
        "recovery": step.recovery,
        "weights": plain["weights"],
        PLAIN: plain["peak"],
        CHECKPOINTED: saved["peak"],
    }


def peak_of(step: Step) -> dict[str, Any]:
    """The most bytes that a step holds at once (`peak`), those of the model (`weights`), and the `operation` then."""
    from idp.bench.meta import Peak

    with Peak() as memory:
        loss, parameters, weights = prepared(step, memory)
        run(step, loss, parameters, memory)
    return {"peak": memory.peak, "weights": weights, "operation": memory.at_peak}


def run(step: Step, loss: Loss, parameters: list[torch.nn.Parameter], memory: Peak) -> None:
    """A step as any but the first is, which finds the optimizer's state there."""
    import torch

    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    memory.restart()
    batch = torch.zeros(step.rows, step.tokens, dtype=torch.long, device="meta")
    for summand in loss.summands(batch, step.micro or step.rows):
        summand.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def prepared(step: Step, memory: Peak) -> tuple[Loss, list[torch.nn.Parameter], int]:
    """A step's loss, what it trains, and the bytes of the model; to be called within `memory`."""
    import torch

    from idp.prompting.shapes import prefix_width
    from idp.recover import lora
    from idp.recover.fitting import Loss
    from idp.recover.nets.reparameterization import Itself
    from idp.recover.objective import Objective, from_the_start
    from idp.recover.tuning import loss_with

    distilled = step.recovery == "distilled prompt"
    options = _training(step, "distill" if distilled else "lm")
    loaded = _opened(step)
    weights = memory.now
    with _bare_heads():
        teacher = _teacher(step, memory) if distilled else None
        if step.recovery == "lora":
            objective = Objective(options, loaded, None)
            targets = [name for name in TARGETS if any(name in each for each, _ in loaded.model.named_modules())]
            adapted = lora.adapt(loaded, _lora(options, targets)).train()
            trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]

            def loss_of(batch: torch.Tensor) -> torch.Tensor:
                return objective(loaded.model, batch, from_the_start(loaded.model, batch))

            return Loss(loss_of, objective.saving.spare), trained, weights
        prefix = step.recovery == "prefix"
        config = loaded.model.config
        width = prefix_width(config) if prefix else config.get_text_config().hidden_size
        maker = Itself(torch.empty(step.length, width, device="meta"))
        return loss_with(loaded, maker, "prefix" if prefix else "prompt", options, teacher), [maker.prompt], weights


def table(found: list[dict[str, Any]]) -> str:
    """The peaks in GiB as Markdown, and by what each card holds the step."""
    from tabulate import tabulate

    lines = []
    for row in found:
        numbers = [f"{row[name] / GIB:.1f}" for name in ("weights", PLAIN, CHECKPOINTED)]
        lines.append([row["shape"], row["recovery"], *numbers, *(fits(row, card) for card in CARDS)])
    headers = ["model", "recovery", "weights", PLAIN, CHECKPOINTED, *(f"{card} GB" for card in CARDS)]
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)


def fits(row: dict[str, Any], card: int) -> str:
    """The first of a row's ways that a card of so many GB holds; "no" where it holds none."""
    ways = {"yes": PLAIN, CHECKPOINTED: CHECKPOINTED}
    return next((said for said, way in ways.items() if row[way] / GIB + BESIDE <= card), "no")


def _opened(step: Step) -> LoadedModel:
    import torch
    from transformers import AutoModelForCausalLM

    from idp.models import LoadedModel

    config = config_of(step.shape, **({"num_hidden_layers": step.layers} if step.layers else {}))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, step.dtype))
    model.tie_weights()
    return LoadedModel(model.eval().requires_grad_(False), None, ())


def _teacher(step: Step, memory: Peak) -> LoadedModel:
    from idp.recover.teacher import stream

    if step.teacher == "resident":
        return _opened(step)
    with memory.elsewhere():  # main memory
        teacher = _opened(step)
    stream(teacher.model, teacher.device)
    return teacher


@contextlib.contextmanager
def _bare_heads() -> Iterator[None]:
    """None of these models changes its logits behind the head; to try it out takes numbers, which `meta` has not."""
    with mock.patch("idp.recover.objective.head_is_bare", lambda model: True):
        yield


def _training(step: Step, objective: str) -> Any:
    from idp.config import Training

    once = dict.fromkeys(("steps", "warmup_steps", "evaluate_every", "heldout_sequences", "checkpoint_every"), 1)
    return Training(
        **once,
        batch_size=step.rows,
        sequence_length=step.tokens,
        learning_rate=1e-3,
        weight_decay=0.0,
        clip=1.0,
        objective=objective,
        temperature=1.0,
        lm_weight=0.0,
        micro_batch_size=step.micro,
        checkpointing=step.checkpointing,
        teacher=step.teacher,
    )


def _lora(training: Any, targets: list[str]) -> Any:
    from idp.config import Search
    from idp.recover.lora import Lora

    none = Search([], [], 1)
    return Lora("lora", training, none, rank=RANK, alpha=ALPHA, dropout=DROPOUT, targets=targets)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m idp.bench.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES), help="models")
    parser.add_argument("--rows", type=int, default=2, help="sequences of a batch")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a sequence")
    parser.add_argument("--length", type=int, default=100, help="tokens of the prompt or prefix")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/memory.json"), help="where the figures go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
