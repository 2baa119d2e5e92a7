"""Output of lm-eval: of its own command line on a tiny model, and invented, in the form that it has."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

DATE = "2026-01-02T03-04-05.678901"
LATER = "2026-02-02T03-04-05.678901"


def evaluate(model: Path, tasks: Path, names: list[str], output: Path, monkeypatch, *more: str) -> Path:
    """Runs `lm_eval` as a user does, in this process; the folder that it writes into."""
    from lm_eval.__main__ import cli_evaluate

    words = ["--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--tasks", ",".join(names)]
    words += ["--include_path", str(tasks), "--output_path", str(output), "--device", "cpu", "--batch_size", "4"]
    monkeypatch.setattr(sys, "argv", ["lm_eval", "run", *words, *more])
    cli_evaluate()
    return output


def invented(
    folder: Path,
    right: dict[str, np.ndarray],
    *,
    model: str = "base",
    date: str | None = DATE,
    metric: str = "acc,none",
    score: dict[str, float] | None = None,
    groups: dict[str, list[str]] | None = None,
    group_scores: dict[str, float] | None = None,
    samples: bool = True,
    version: float = 1.0,
    shots: int = 0,
    lower: bool = False,
    questions: str = "question",
    asked: str = "",
    first: int = 0,
) -> Path:
    """One run of a model: `right` has the scores of each task's documents; the results' file.

    `questions` begins each document, `asked` what the model is told before it, `first` is the first document's number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name, kind = metric.split(",")
    end = f"_{date}" if date else ""
    results = {task: {"alias": task, metric: float(np.mean(each))} for task, each in right.items()}
    for task, value in (score or {}).items():
        results[task][metric] = value
    for group, value in (group_scores or {}).items():
        results[group] = {"alias": group, metric: value}
    values = {
        "results": results,
        "groups": {group: results[group] for group in group_scores or {}},
        "group_subtasks": {**{task: [] for task in right}, **(groups or {})},
        "configs": {task: {"task": task, "num_fewshot": shots} for task in right},
        "versions": dict.fromkeys(right, version),
        "n-shot": dict.fromkeys(right, shots),
        "higher_is_better": {task: {name: not lower} for task in right},
        "n-samples": {task: {"original": len(each), "effective": len(each)} for task, each in right.items()},
        "config": {"model": "hf", "model_args": {"pretrained": f"someone/{model}"}},
        "model_name": f"someone/{model}",
        "model_source": "hf",
        "fewshot_as_multiturn": False,
    }
    place = folder / f"results{end}.json"
    place.write_text(json.dumps(values))
    for task, each in right.items() if samples else ():
        lines = []
        for number, value in enumerate(each, first):
            text = f"{asked}{questions} {number}"
            lines.append(
                {
                    "doc_id": number,
                    "doc": {"question": f"{questions} {number}"},
                    "target": "0",
                    "arguments": {
                        f"gen_args_{choice}": {"arg_0": text, "arg_1": word}
                        for choice, word in enumerate((" yes", " no"))
                    },
                    "resps": [[["-1.0", "False"]], [["-2.0", "False"]]],
                    "filtered_resps": [["-1.0", "False"], ["-2.0", "False"]],
                    "filter": kind,
                    "metrics": [name],
                    "doc_hash": f"{questions}-{number}",
                    "prompt_hash": text,
                    "target_hash": "0",
                    name: float(value),
                }
            )
        (folder / f"samples_{task}{end}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return place
