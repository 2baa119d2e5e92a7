"""Which of lm-eval's figures is a task's score, and those of a record by model and task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from idp.records.schema import Record

GROUPS = {
    "world_knowledge": ("arc_easy", "arc_challenge", "sciq", "webqs", "triviaqa"),
    "commonsense": ("hellaswag", "piqa"),
    "language_understanding": ("lambada_openai", "winogrande"),
}
NINE = tuple(name for names in GROUPS.values() for name in names)  # the tasks of Hoang et al.
GROUPS = {"all": NINE, **GROUPS}

MAIN_METRIC = dict.fromkeys(NINE, "acc") | {
    "hellaswag": "acc_norm",
    "webqs": "exact_match",
    "triviaqa": "exact_match",
    "nq_open": "exact_match",
}


def main_metric(task_name: str, results: dict[str, Any]) -> str:
    """The result key of the metric that tables show, such as `acc_norm,none`.

    Args:
        task_name: any lm-eval task; beside the nine: exact_match, acc_norm, acc, or the first metric that there is.
        results: one task's entry in lm-eval's `results`, or one document's metrics.
    """
    keys = [key for key in results if "," in key and "_stderr," not in key]
    wanted = [MAIN_METRIC[task_name]] if task_name in MAIN_METRIC else ["exact_match", "acc_norm", "acc"]
    for metric in wanted:
        for key in keys:
            if key.split(",")[0] == metric:
                return key
    if not keys:
        raise KeyError(f"{task_name}: no metric among {sorted(results)}")
    return keys[0]


def is_mean(values: Sequence[float], score: Any) -> bool:
    """Whether a task's score is the mean over its documents, as that of a correlation or a perplexity is not.

    A difference of such means would be one of something else.
    """
    known = isinstance(score, (int, float)) and len(values) > 0
    return known and math.isclose(sum(values) / len(values), score, rel_tol=1e-6, abs_tol=1e-9)


def rows_of(record: Record) -> dict[str, dict[str, Any]]:
    """lm-eval's `results` of each model of a run, baselines first: dense, compressed, repaired as far as measured."""
    about = record["idp"]
    return {row: found["results"] for row, found in about["baselines"].items()} | {about["row"]: record["results"]}


def main_scores(record: Record, results: dict[str, Any]) -> dict[str, float]:
    """Each task's main score, by the name that was asked for."""
    scores = {}
    for task, data in record["idp"]["data"].items():
        metrics = results[data["stand_in"] or task]
        scores[task] = metrics[main_metric(data["stand_in"] or task, metrics)]
    return scores


def lower_is_better(record: Record, task: str) -> bool:
    """Whether a task's main metric is better where it is lower."""
    runs = record["idp"]["data"][task]["stand_in"] or task
    metric = main_metric(runs, record["results"][runs]).split(",")[0]
    return record.get("higher_is_better", {}).get(runs, {}).get(metric) is False
