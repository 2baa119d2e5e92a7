"""The one training loop: frozen model, a few trained tensors, the best held-out checkpoint, exact resume."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.config import Training
from idp.errors import UserError
from idp.preemption import postponed
from idp.progress import progress
from idp.recover.checkpoint import load_checkpoint, save_checkpoint, write_tensors
from idp.recover.determinism import deterministic
from idp.recover.fitting import FitResult, Loss

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Report = Callable[[dict[str, float]], None]


class Diverged(UserError):
    """The loss or its gradient stopped being a number."""


@dataclass
class History:
    """What a training run leaves: one row per step, one per held-out evaluation, and the best of those.

    `changes` has a row for each thing that is done otherwise from a step on: what was `changed` because memory had run
    out, or because an operation has no deterministic form.
    """

    train: list[dict[str, float]] = field(default_factory=list)
    heldout: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    best_loss: float = math.inf
    changes: list[dict[str, Any]] = field(default_factory=list)


def train(
    parameters: dict[str, torch.nn.Parameter],
    loss_of: Loss | Callable[[torch.Tensor], torch.Tensor],
    blocks: torch.Tensor,
    heldout: torch.Tensor,
    options: Training,
    *,
    seed: int,
    checkpoint: Path,
    label: str,
    report: Report | None = None,
) -> History:
    """Trains `parameters` in place and leaves them as they were at the best held-out loss.

    Step 0 is evaluated as well, so a repair is never worse on held-out text than its start. A run that was killed
    continues from `checkpoint` and ends as an undisturbed one would, bit for bit on the same machine: the order of
    the blocks is drawn from the seed, and each step's own randomness (LoRA's dropout) from the seed and the step.

    Where memory runs out, `Loss.spare` is asked first; then the micro batch is halved. The step is taken again, as if
    that had been so from its start.

    Args:
        parameters: the trained tensors, by name.
        loss_of: a `Loss`, or the mean loss in nats per token of a batch of token ids, [batch, tokens]; called in
            training and, without gradients, on held-out text.
        blocks: training text, [blocks, tokens].
        heldout: held-out text, [blocks, tokens].
        options: steps, batch size, learning rate and so on.
        seed: draws the order of the blocks.
        checkpoint: a folder that survives a kill.
        label: what is said beside the progress bar.
        report: called with each step's figures, for live curves; first with those that `checkpoint` has.

    Raises:
        Diverged: the loss is no longer a number; the best state so far is in `best.safetensors` in `checkpoint`.
    """
    import torch

    loss_of = loss_of if isinstance(loss_of, Loss) else Loss(loss_of)
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=options.learning_rate, weight_decay=options.weight_decay, betas=(0.9, 0.999)
    )
    history, best, done = _resume(checkpoint, parameters, optimizer)
    if report is not None:
        for row in rows(history):  # what a killed process reported may have got lost with it
            report(row)
    order = _order(len(blocks), options.steps * options.batch_size, seed)
    fitting = FitResult(loss_of, options.micro_batch_size or options.batch_size, history.changes)

    def evaluate(step: int) -> None:
        nonlocal best
        loss = fitting.attempt(step, lambda rows: _heldout_loss(loss_of, heldout, rows))
        history.heldout.append({"step": step, "loss": loss})
        if report is not None:
            report({"step": step, "heldout_loss": loss})
        if loss < history.best_loss:
            history.best_step, history.best_loss = step, loss
            best = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def backward(step: int, rows: int) -> float:
        optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(seed * 1_000_003 + step)
        batch, total = blocks[order[(step - 1) * options.batch_size : step * options.batch_size]], 0.0
        for summand in loss_of.summands(batch, rows):
            summand.backward()
            total += summand.item()
        return total

    with deterministic(parameters.values()):
        fitting.resume()
        if not history.heldout:
            evaluate(0)
        with progress(options.steps, label, unit="steps") as bar, postponed() as stop:
            bar.update(done)
            for step in range(done + 1, options.steps + 1):
                rate = options.learning_rate * schedule(step, options.steps, options.warmup_steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                loss = fitting.attempt(step, functools.partial(backward, step))
                norm = torch.nn.utils.clip_grad_norm_(parameters.values(), options.clip or math.inf)
                if not (math.isfinite(loss) and math.isfinite(norm.item())):
                    write_tensors(checkpoint / "best.safetensors", best)
                    raise Diverged(
                        f"{label}: the loss is {loss:g} and the gradient {norm.item():g} at step {step}; lower"
                        f" recovery.training.learning_rate={options.learning_rate:g}. The best state so far (step"
                        f" {history.best_step}) is {checkpoint / 'best.safetensors'}"
                    )
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                row = {"step": step, "loss": loss, "gradient_norm": norm.item(), "learning_rate": rate}
                history.train.append(row)
                if report is not None:
                    report(row)
                bar.set_postfix(loss=f"{row['loss']:.3f}", heldout=f"{history.best_loss:.3f}")
                bar.update(1)
                if step % options.evaluate_every == 0 or step == options.steps:
                    evaluate(step)
                if step % options.checkpoint_every == 0 or step == options.steps or stop.asked:
                    _save(checkpoint, step, history, best, parameters, optimizer)
                stop.now_if_asked()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(best[name])
    return history


def rows(history: History) -> list[dict[str, float]]:
    """A history as `report` is given it: by step, a step's held-out evaluation after its training."""
    heldout = [{"step": row["step"], "heldout_loss": row["loss"]} for row in history.heldout]
    return sorted([*history.train, *heldout], key=lambda row: row["step"])


def named(report: Report | None, name: str) -> Report | None:
    """A report whose figures are preceded by the name of the prompt or adapter that they belong to."""
    if report is None:
        return None
    return lambda row: report({key if key == "step" else f"{name}/{key}": value for key, value in row.items()})


def report_rows(histories: dict[str, Any], report: Report) -> None:
    """Reports the stored curves of a repair's trainings, by the name of each."""
    for name, history in histories.items():
        for row in rows(History(**history)):
            report({key if key == "step" else f"{name}/{key}": value for key, value in row.items()})


def schedule(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up to 1 at step `warmup`, then linear decay to 0 just after the last step; `step` counts from 1."""
    if step <= warmup:
        return step / warmup
    return (steps + 1 - step) / (steps + 1 - warmup)


def _order(blocks: int, wanted: int, seed: int) -> torch.Tensor:
    """Block numbers for the whole run: as many passes over shuffled blocks as it takes."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    passes = [torch.randperm(blocks, generator=generator) for _ in range(math.ceil(wanted / blocks))]
    return torch.cat(passes)[:wanted]


def _heldout_loss(loss_of: Loss, heldout: torch.Tensor, batch_size: int) -> float:
    import torch

    total = 0.0
    with torch.no_grad():
        for start in range(0, len(heldout), batch_size):
            batch = heldout[start : start + batch_size]
            total += loss_of(batch).item() * len(batch)
    return total / len(heldout)


def _save(
    folder: Path, step: int, history: History, best: dict, parameters: dict, optimizer: torch.optim.Optimizer
) -> None:
    tensors = {f"parameter.{name}": value.detach() for name, value in parameters.items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for name, parameter in parameters.items():
        tensors |= {f"{key}.{name}": value for key, value in optimizer.state[parameter].items()}
    save_checkpoint(folder, f"step-{step}", tensors, step=step, history=vars(history))


def _resume(folder: Path, parameters: dict, optimizer: torch.optim.Optimizer) -> tuple[History, dict[str, Any], int]:
    """The state that `_save` left, or a fresh one: history, best tensors, steps done."""
    import torch

    fresh = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    found = load_checkpoint(folder)
    if found is None:
        return History(), fresh, 0
    tensors, state = found
    best = {name: tensors[f"best.{name}"].to(value.device) for name, value in fresh.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameter.{name}"])
            optimizer.state[parameter] = {
                key: tensors[f"{key}.{name}"] if key == "step" else tensors[f"{key}.{name}"].to(parameter.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
    log.info("training continues after step %d", state["step"])
    return History(**state["history"]), best, state["step"]
