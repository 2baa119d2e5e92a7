"""Weights & Biases: config, curves, summary and a table of each run. No trouble of W&B's ever costs a run."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from idp.config import Tracker

log = logging.getLogger(__name__)


def _never_fatal(method: Callable) -> Callable:
    """Turns any error into one warning, after which tracking is off; the record on disk is what counts."""

    @functools.wraps(method)
    def guarded(self: WandbTracker, *args: Any, **kwargs: Any) -> None:
        if self.off:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self.off = True
            reason = " ".join(str(error).split()) or type(error).__name__
            log.warning("W&B: %s; the run goes on without it, and its record is written all the same", reason)

    return guarded


class WandbTracker:
    """One W&B run, whose id comes from the config's hash, so that a repeated or continued run joins its first.

    Args:
        options: mode, project, entity, group and tags.
        folder: the run's folder; W&B writes below it.
        name: the run's name.
        run_id: 8 or more hex digits.
        config: the resolved config.
        group: the group where the options name none.
        tags: tags beside those of the options.
    """

    def __init__(
        self,
        options: Tracker,
        folder: Path,
        *,
        name: str,
        run_id: str,
        config: dict[str, Any],
        group: str,
        tags: list[str],
    ):
        self.off, self.run = options.mode == "disabled", None
        self._start(options, folder, name, run_id, config, group, tags)

    @_never_fatal
    def _start(
        self, options: Tracker, folder: Path, name: str, run_id: str, config: dict, group: str, tags: list[str]
    ) -> None:
        import wandb

        self.run = wandb.init(
            project=options.project,
            entity=options.entity,
            group=options.group or group,
            name=name,
            id=run_id,
            resume="allow",
            tags=[*tags, *options.tags],
            config=config,
            dir=str(folder),
            mode=mode_of(options.mode),
            settings=wandb.Settings(silent=True, console="off", init_timeout=30),
        )
        for part in ("train/*", "heldout/*"):
            self.run.define_metric(part, step_metric="training_step")

    @_never_fatal
    def log_training(self, row: dict[str, float]) -> None:
        """One training step or held-out evaluation: `train/<part>/loss`, `heldout/<part>/loss` and so on."""
        values: dict[str, float] = {"training_step": row["step"]}
        for key, value in row.items():
            if key == "step":
                continue
            part, _, metric = key.rpartition("/")
            kind, metric = ("heldout", "loss") if metric == "heldout_loss" else ("train", metric)
            values["/".join(filter(None, (kind, part, metric)))] = value
        self.run.log(values)

    @_never_fatal
    def finish(self, record: dict[str, Any]) -> None:
        """Summary and tables from the record, then the end of the run."""
        import wandb

        self.run.summary.update(summary(record))
        columns, rows = results_rows(record)
        self.run.log({"results": wandb.Table(columns=columns, data=rows)})
        selection = [
            [task, prompt, count]
            for task, counts in record["idp"]["selection"].items()
            for prompt, count in counts.items()
        ]
        if selection:
            self.run.log({"selection": wandb.Table(columns=["task", "prompt", "documents"], data=selection)})
        self.run.finish()

    @_never_fatal
    def fail(self) -> None:
        """Ends the run as failed; what was logged so far is kept."""
        self.run.finish(exit_code=1)


def mode_of(mode: str) -> str | None:
    """The mode for `wandb.init`: `auto` is online when logged in, else offline; WANDB_MODE is W&B's own business."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE"):
        return None
    import wandb

    return "online" if wandb.login(prompt=False) else "offline"


def summary(record: dict[str, Any]) -> dict[str, float]:
    """The summary metrics: `<task>/<metric>`, `mean/acc`, `params/*`, `ppl/*`, and the baselines under their names."""
    from idp.report.tables import main_scores

    about = record["idp"]
    values: dict[str, float] = {
        "params/model": about["parameters"]["model"],
        "params/added": about["parameters"]["added"],
        "params/trainable": about["parameters"]["trainable"],
        "weights/sparsity": about["weights"]["sparsity"],
        "weights/bits_per_weight": about["weights"]["bits_per_weight"],
        "weights/packed_bytes": about["weights"]["packed_bytes"],
        "weights/effective_bytes": about["weights"]["effective_bytes"],
    }
    rows = {"": (record["results"], about["perplexity"])}
    rows |= {f"{row}/": (found["results"], found["perplexity"]) for row, found in about["baselines"].items()}
    for prefix, (results, perplexity) in rows.items():
        for task, metrics in results.items():
            for key, value in metrics.items():
                if isinstance(value, (int, float)) and "," in key:
                    values[f"{prefix}{task}/{key.removesuffix(',none').replace(',', '_')}"] = value
        scores = main_scores(record, results)
        values[f"{prefix}mean/acc"] = sum(scores.values()) / len(scores)
        values |= {f"{prefix}ppl/{corpus}": value for corpus, value in perplexity.items()}
    for row in (about["latency"] or {}).get("rows", []):
        name = f"latency/{row['variant']}/{row['batch_size']}x{row['input_tokens']}"
        values |= {f"{name}/{part}_{key}": row[part][key] for part in ("prefill", "decode") for key in ("p50", "ratio")}
    for task, found in (about["selector"] or {"entropy": {}})["entropy"].items():
        values[f"selection/{task}/entropy"] = found["nats"]
    mean = (about["controls"] or {}).get("mean") or {}
    values |= {f"controls/{way}": value for way, value in mean.items() if isinstance(value, float)}
    for name, training in (about["training"] or {}).items():
        values[f"heldout/{name}/best_loss"] = training["heldout_loss"]
    return values


def results_rows(record: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """The table of results: one row per task, with each model's main score."""
    from idp.report.tables import main_scores, rows_of

    rows = rows_of(record)
    scores = {row: main_scores(record, results) for row, results in rows.items()}
    tasks = record["idp"]["data"]
    return ["task", "stand_in", *rows], [
        [task, tasks[task]["stand_in"] or "", *(scores[row][task] for row in rows)] for task in tasks
    ]
