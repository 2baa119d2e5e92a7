"""Invented runs: what each model scores on each document is given, and products and record are made of that."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from idp.evaluate import comparisons
from idp.evaluate.measured import Measured
from idp.evaluate.written import write_corpus, write_task
from idp.records.conclusion import conclusion

Models = Mapping[str, Mapping[str, Sequence[float]]]  # dense, compressed, repaired -> task -> of each document


class Written:
    """A measure product as comparisons read it: a folder."""

    def __init__(self, path: Path):
        self.path = path

    def read(self, name: str) -> Any:
        return json.loads((self.path / name).read_text())


def product(
    folder: Path,
    task: str,
    scores: Sequence[float],
    *,
    metric: str = "acc,none",
    lower: bool = False,
    score: float | None = None,
    order: Sequence[int] | None = None,
) -> Written:
    """One task's product of one model; `score` where it is not the mean of `scores`, `order` that of the rows."""
    folder.mkdir(parents=True)
    results = {
        "results": {task: {"alias": task, metric: float(np.mean(scores)) if score is None else score}},
        "higher_is_better": {task: {metric.split(",")[0]: not lower}},
    }
    rows = [
        {
            "doc_id": number,
            "choices": [" yes", " no"],
            "loglikelihoods": [float(np.log(share)) for share in ((0.7, 0.3) if value == 1 else (0.3, 0.7))],
            "greedy": [],
            "target": " yes",
            f"metric:{metric}": float(value),
        }
        for number, value in enumerate(scores)
    ]
    write_task(folder, results, [rows[number] for number in order or range(len(rows))])
    return Written(folder)


def text(folder: Path, losses: Sequence[float]) -> Written:
    """One text's product of one model, of each window's loss."""
    folder.mkdir(parents=True)
    write_corpus(folder, list(losses), 8)
    return Written(folder)


def measured(folder: Path, models: Models, texts: Models | None = None, **more: Any) -> dict[str, Measured]:
    """Products of every model on every task, and of the losses of each window of `texts`."""
    return {
        row: Measured(
            row,
            {task: product(folder / row / task, task, scores, **more) for task, scores in tasks.items()},
            {name: text(folder / row / f"text {name}", losses) for name, losses in (texts or {}).get(row, {}).items()},
        )
        for row, tasks in models.items()
    }


def sources(tasks: Sequence[str], stand_ins: Mapping[str, str] | None = None) -> list[Any]:
    """What `find_tasks` would say of them, as far as comparisons ask."""
    return [SimpleNamespace(name=task, runs=(stand_ins or {}).get(task, task)) for task in tasks]


def record(
    folder: Path,
    models: Models,
    *,
    compressor: str = "gptq3",
    recovery: str = "prompt",
    selector: dict[str, Any] | None = None,
    choice: dict[str, Any] | None = None,
    stand_ins: Mapping[str, str] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    trained: bool = True,
    baselines: bool = True,
    **more: Any,
) -> dict[str, Any]:
    """The record of a run whose models score so, with what tables, sentence and W&B read of it."""
    made = measured(folder, models, **more) if not stand_ins else _standing_in(folder, models, stand_ins)
    own, tasks = list(models)[-1], list(next(iter(models.values())))
    results = {
        row: {
            runs: value
            for each in scores.tasks.values()
            for runs, value in each.read("results.json")["results"].items()
        }
        for row, scores in made.items()
    }
    higher: dict[str, Any] = {}
    for each in made[own].tasks.values():
        higher |= each.read("results.json")["higher_is_better"]
    method = compressor.rstrip("0123456789")
    about = {
        "name": "invented",
        "row": own,
        "compressor": compressor,
        "budget": "small",
        "config": {
            "compressor": {
                "sparsity": {"method": None},
                "quantization": {"method": method if method != "none" else None},
            },
            "recovery": {"kind": recovery, "selector": choice},
            "task": {},
        },
        "data": {
            task: {
                "stand_in": (stand_ins or {}).get(task),
                "documents": len(models[own][task]),
                "documents_in_split": 10 * len(models[own][task]),
            }
            for task in tasks
        },
        "baselines": {row: {"results": results[row], "perplexity": {}} for row in models if row != own}
        if baselines
        else {},
        "perplexity": {},
        "selector": {"entropy": {}, "collapsed": [], "peeks": False, **selector} if selector else None,
        "selection": {},
        "controls": None,
        "truncated": {},
        "latency": None,
        "training": {"prompt": {"heldout_loss": 3.0}} if trained and own == "repaired" else None,
        "parameters": {"model": 1000, "added": 64, "trainable": 64},
        "repair_bytes": 256,
        "weights": {"bits_per_weight": 3.3, "sparsity": 0.0, "packed_bytes": 1000, "effective_bytes": 1000},
        "stages": {"load": {"key": "a", "reused": True, "seconds": 1.5}, "recover": None},
        "peak_memory_bytes": {"load": 123},
    }
    about["comparisons"] = comparisons.of_run(made, sources(tasks, stand_ins), groups) if baselines else []
    found = {
        "results": results[own],
        "higher_is_better": higher,
        "config": {"model": "toy", "model_dtype": "float32"},
        "idp": about,
    }
    about["conclusion"] = conclusion(found)
    return found


def _standing_in(folder: Path, models: Models, stand_ins: Mapping[str, str]) -> dict[str, Measured]:
    return {
        row: Measured(
            row,
            {task: product(folder / row / task, stand_ins.get(task, task), scores) for task, scores in tasks.items()},
        )
        for row, tasks in models.items()
    }


def hits(right: int, documents: int, turned_right: int = 0, turned_wrong: int = 0) -> list[float]:
    """The first `right` documents right; then of the wrong ones some turned right, of the right ones some wrong."""
    found = [1.0] * right + [0.0] * (documents - right)
    for place in range(turned_right):
        found[right + place] = 1.0
    for place in range(turned_wrong):
        found[place] = 0.0
    return found
