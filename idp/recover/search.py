"""A small search before the training proper: learning rate and initial value decide most of what a prompt becomes.

Every candidate is trained for a few steps on the training text; the one with the best loss on held-out text, which is
never a task's, is then trained in full.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from idp import config
from idp.errors import UserError
from idp.recover.training import Diverged, History


def search(
    recovery: config.Trained, train: Callable[[config.Trained, Path, str], History], checkpoint: Path
) -> tuple[config.Trained, dict[str, Any]]:
    """The recovery with the best candidate's learning rate and initial value, and what each candidate came to.

    A killed search continues: a candidate that was done is read from its checkpoint.

    Args:
        recovery: its `search` says what to try.
        train: trains a candidate, given also a folder for its checkpoint and what to say beside the progress bar.
        checkpoint: a folder that survives a kill.

    Returns:
        the recovery to train, and `steps`, `candidates` and `chosen` for the record. A candidate whose loss stopped
        being a number has none.

    Raises:
        UserError: that happened to every one.
    """
    options = recovery.search
    rates = options.learning_rates or [recovery.training.learning_rate]
    inits: list[str | None] = [*options.inits] or [getattr(recovery, "init", None)]
    candidates: list[dict[str, Any]] = []
    for number, (rate, init) in enumerate(itertools.product(rates, inits)):
        found: dict[str, Any] = {"learning_rate": rate} | ({"init": init} if init is not None else {})
        label = f"candidate {number + 1} of {len(rates) * len(inits)}: {_describe(found)}"
        try:
            history = train(_candidate(recovery, rate, init), checkpoint / f"candidate-{number}", label)
            found |= {
                "heldout_loss": history.best_loss,
                "heldout_loss_at_start": history.heldout[0]["loss"],
                "best_step": history.best_step,
            }
        except Diverged as error:
            found |= {"heldout_loss": None, "error": str(error)}
        candidates.append(found)
    alive = [candidate for candidate in candidates if candidate["heldout_loss"] is not None]
    if not alive:
        raise UserError(
            f"recovery.search: the loss of every candidate stopped being a number, the last one's so:"
            f" {candidates[-1]['error']}"
        )
    best = min(alive, key=lambda candidate: candidate["heldout_loss"])
    chosen = {name: best[name] for name in ("learning_rate", "init") if name in best}
    training = replace(recovery.training, learning_rate=best["learning_rate"])
    recovery = replace(recovery, training=training, **({"init": best["init"]} if "init" in best else {}))
    return recovery, {"steps": options.steps, "candidates": candidates, "chosen": chosen}


def _candidate(recovery: config.Trained, rate: float, init: str | None) -> config.Trained:
    """The recovery as it is tried: a bank by one prompt of its longest length."""
    training, steps = recovery.training, recovery.search.steps
    training = replace(
        training,
        learning_rate=rate,
        steps=steps,
        warmup_steps=training.warmup_steps * steps // training.steps,
        evaluate_every=min(training.evaluate_every, steps),
        checkpoint_every=min(training.checkpoint_every, steps),
    )
    recovery = recovery.candidate()
    changes: dict[str, Any] = {"init": init} if init is not None else {}
    return replace(recovery, training=training, **changes)


def _describe(candidate: dict[str, Any]) -> str:
    parts = {name: f"{value:g}" if isinstance(value, float) else value for name, value in candidate.items()}
    return ", ".join(f"{name} {value}" for name, value in parts.items())
