"""The most bytes of a card that a training step holds, without a card and without weights.

The step is the real one, forward, backward and the optimizer's, on `meta` tensors (`idp.plan.meta`). Peaks count every
tensor to the byte, and not what a card holds beside them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from unittest import mock

from idp.plan.shapes import config_of

if TYPE_CHECKING:
    import torch

    from idp.models import LoadedModel
    from idp.plan.meta import Peak
    from idp.recover.fitting import Loss

RECOVERIES = ("prompt", "prefix", "lora", "distilled prompt")
PLAIN, CHECKPOINTED = "plain", "checkpointing"
TARGETS = ("q_proj", "v_proj")  # as conf/recovery/lora.yaml has them, and its rank
RANK, ALPHA, DROPOUT = 8, 16.0, 0.05


@dataclass
class TrainingStep:
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


def peaks(step: TrainingStep) -> dict[str, Any]:
    """The peaks of a step in bytes: as it is, and with layers computed anew and a streamed teacher."""
    plain, saved = peak_of(step), peak_of(replace(step, checkpointing=True, teacher="streamed"))
    return {
        "shape": step.shape,
        "recovery": step.recovery,
        "weights": plain["weights"],
        PLAIN: plain["peak"],
        CHECKPOINTED: saved["peak"],
    }


def peak_of(step: TrainingStep) -> dict[str, Any]:
    """The most bytes that a step holds at once (`peak`), those of the model (`weights`), and the `operation` then."""
    from idp.plan.meta import Peak

    with Peak() as memory:
        loss, parameters, weights = prepared(step, memory)
        run(step, loss, parameters, memory)
    return {"peak": memory.peak, "weights": weights, "operation": memory.at_peak}


def run(step: TrainingStep, loss: Loss, parameters: list[torch.nn.Parameter], memory: Peak) -> None:
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


def prepared(step: TrainingStep, memory: Peak) -> tuple[Loss, list[torch.nn.Parameter], int]:
    """A step's loss, what it trains, and the bytes of the model; to be called within `memory`."""
    import torch

    from idp.prompting.shapes import prefix_width
    from idp.recover import lora
    from idp.recover.fitting import Loss
    from idp.recover.live import from_the_start
    from idp.recover.nets.reparameterization import Itself
    from idp.recover.objective import Objective
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


def _opened(step: TrainingStep) -> LoadedModel:
    import torch
    from transformers import AutoModelForCausalLM

    from idp.models import LoadedModel

    config = config_of(step.shape, **({"num_hidden_layers": step.layers} if step.layers else {}))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, step.dtype))
    model.tie_weights()
    return LoadedModel(model.eval().requires_grad_(False), None, ())


def _teacher(step: TrainingStep, memory: Peak) -> LoadedModel:
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
    with mock.patch("idp.recover.live.head_is_bare", lambda model: True):
        yield


def _training(step: TrainingStep, objective: str) -> Any:
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
