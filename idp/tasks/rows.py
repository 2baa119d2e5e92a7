"""What lm-eval's evaluator returns, as plain JSON for the record and as flat rows for a Parquet file."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

from idp.store.plain import plain

KEPT = ("results", "versions", "n-shot", "n-samples", "higher_is_better", "configs")


def results_of_task(results: dict[str, Any], samples: list[dict[str, Any]], task: str) -> dict[str, Any]:
    """lm-eval's schema for one task, as plain JSON, with its task hash."""
    from lm_eval.utils import hash_string

    kept = {key: {task: results[key][task]} for key in KEPT}
    # As lm_eval.loggers.EvaluationTracker.save_results_aggregated makes it.
    hashes = [sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"] for sample in samples]
    kept["task_hashes"] = {task: hash_string("".join(hashes))}
    return plain(kept)


def of_documents(task: Any, name: str, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One flat row per document, in the order of the split.

    Columns: `task`; `doc_id`, the index in the split; `doc_hash`; `context`, what all choices share; `choices`, the
    continuations (`context + choices[i]` is the whole text of choice i); `loglikelihoods` of the choices in nats and
    `greedy`, whether each is what greedy decoding gives (both empty for generation); `generation`, the model's text
    before any filter, or None; `target`, the right choice as it stands in `choices`, or the accepted answers (a JSON
    list where there are several); `metrics`, a float for each of lm-eval's result keys, such as `acc,none` (those
    that lm-eval defines per document: a correlation over the whole split is not among them).
    """
    rows: dict[int, dict[str, Any]] = {}
    for sample in samples:  # one for each document and filter
        row = rows.get(sample["doc_id"])
        if row is None:
            row = rows[sample["doc_id"]] = _row(task, name, sample)
        for metric in sample["metrics"]:
            with contextlib.suppress(TypeError, ValueError):
                row["metrics"][f"{metric},{sample['filter']}"] = float(sample[metric])
    return [rows[doc_id] for doc_id in sorted(rows)]


@contextlib.contextmanager
def quiet(level: int) -> Iterator[None]:
    """lm-eval without its progress bars, prints, process pool, and log lines below `level`; the model's own stay.

    Its templates are compiled once each, not once for each document, which takes longer than all else that it does.
    """
    import datasets
    import lm_eval.api.metrics
    import lm_eval.api.task
    import lm_eval.utils

    logger, before = logging.getLogger("lm_eval"), os.environ.get("DISABLE_MULTIPROC")
    old_level, bar, bootstrap = logger.level, lm_eval.api.task.tqdm, lm_eval.api.metrics.bootstrap_stderr
    had_bars = datasets.utils.are_progress_bars_disabled() is False
    logger.setLevel(level)
    datasets.disable_progress_bars()
    lm_eval.api.task.tqdm = lambda items, **_: items
    templates, compiled = lm_eval.utils.env, lm_eval.utils.env.from_string
    templates.from_string = _compiled
    lm_eval.api.metrics.bootstrap_stderr = _silent(bootstrap)
    os.environ["DISABLE_MULTIPROC"] = "1"  # a fork of a process with a model and threads may hang
    try:
        yield
    finally:
        logger.setLevel(old_level)
        if had_bars:
            datasets.enable_progress_bars()
        lm_eval.api.task.tqdm, lm_eval.api.metrics.bootstrap_stderr = bar, bootstrap
        templates.from_string = compiled
        os.environ.pop("DISABLE_MULTIPROC")
        if before is not None:
            os.environ["DISABLE_MULTIPROC"] = before


@functools.lru_cache(maxsize=512)
def _compiled(source: str) -> Any:
    import lm_eval.utils

    return type(lm_eval.utils.env).from_string(lm_eval.utils.env, source)


def _silent(function: Any) -> Any:
    @functools.wraps(function)
    def silent(*arguments: Any, **options: Any) -> Any:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                return function(*arguments, **options)
            except OverflowError:  # the perplexity of a model that compression broke
                return float("inf")

    return silent


def _row(task: Any, name: str, sample: dict[str, Any]) -> dict[str, Any]:
    generated = task.OUTPUT_TYPE == "generate_until"
    arguments, responses = sample["arguments"], [answers[0] for answers in sample["resps"]]
    context, choices = _shared_context(arguments) if not generated else (arguments[0][0], [])
    scored = (
        [answer if isinstance(answer, (tuple, list)) else (answer, None) for answer in responses]
        if not generated
        else []
    )
    return {
        "task": name,
        "doc_id": sample["doc_id"],
        "doc_hash": sample["doc_hash"],
        "context": context,
        "choices": choices,
        "loglikelihoods": [float(loglikelihood) for loglikelihood, _ in scored],
        "greedy": [bool(greedy) for _, greedy in scored if greedy is not None],
        "generation": responses[0] if generated else None,
        "target": _target(task, sample, choices),
        "metrics": {},
    }


def _shared_context(arguments: list[tuple]) -> tuple[str, list[str]]:
    """Winogrande has one context per choice: the words that they share, and the rest put before the continuation."""
    pairs = [pair if len(pair) > 1 else ("", *pair) for pair in arguments]  # rolling log-likelihood has no context
    contexts = [pair[0] for pair in pairs]
    shared = contexts[0]
    while not all(context.startswith(shared) for context in contexts):
        shared = shared[: shared.rstrip(" ").rfind(" ") + 1]
    return shared, [context[len(shared) :] + continuation for context, continuation, *_ in pairs]


def _target(task: Any, sample: dict[str, Any], choices: list[str]) -> str:
    target = sample["target"]
    if task.OUTPUT_TYPE != "multiple_choice":
        return _text(target)
    right = task.doc_to_text(sample["doc"]) if task.multiple_input else target
    if isinstance(right, str):
        known = task.doc_to_choice(sample["doc"])
        right = known.index(right) if right in known else right
    if isinstance(right, int) and 0 <= right < len(choices):
        return choices[right]
    if isinstance(right, list):
        return _text([choices[index] if isinstance(index, int) else index for index in right])
    return _text(right)


def _text(target: Any) -> str:
    return target if isinstance(target, str) else json.dumps(plain(target), ensure_ascii=False)
