"""What measuring leaves in a product: of a task lm-eval's results and a row per document, of a corpus its windows."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.evaluate.benchmark import MERGED_CHOICES, RESULTS, SAMPLES
from idp.evaluate.fidelity import WINDOWS
from idp.store import write_json

if TYPE_CHECKING:
    from idp.evaluate.scorer import Scorer
    from idp.tasks.tasks import TaskSource

log = logging.getLogger(__name__)

PERPLEXITY = "perplexity.json"


def write_scored(
    folder: Path, scorer: Scorer, source: TaskSource, results: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    """Writes what `run_task` gave, with what the scorer counted beside it.

    Args:
        folder: of the product.
        scorer: it knows which prompt each document was given; lm-eval numbers a sample's documents from 0.
        source: the task.
        results: lm-eval's.
        rows: one for each document, in the order of the split.
    """
    for place, row in enumerate(rows):
        row["prompt"] = scorer.choices.get((source.runs, place))
        row |= {f"metric:{key}": value for key, value in row.pop("metrics").items()}
    counts = Counter(row["prompt"] for row in rows if row["prompt"] is not None)
    results["idp"] = {
        "selection": {name: counts[number] for number, name in enumerate(scorer.engine.prompts)},
        "truncated": scorer.truncated,
        MERGED_CHOICES: scorer.merged,
        "partly_merged_choices": scorer.partly_merged,
        "tokens_run": scorer.tokens_run,
    }
    if scorer.merged:
        _say_merged(source.runs, scorer.merged)
    write_task(folder, results, rows)


@functools.cache
def _say_merged(task: str, count: int) -> None:
    """Once, not once for each model: they share their tokenizer."""
    from idp.evaluate.scorer import MERGED

    log.warning("task %s: %d choices %s (idp.merged_choices in the record)", task, count, MERGED)


def write_task(folder: Path, results: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Writes a task's product: lm-eval's results, and one row per document."""
    import pyarrow as arrow
    from pyarrow import parquet

    write_json(folder / RESULTS, results)
    parquet.write_table(arrow.Table.from_pylist(rows), folder / SAMPLES)


def write_corpus(folder: Path, losses: list[float], window: int) -> None:
    """Writes a corpus's product: its perplexity, and the loss of each window of `window` tokens."""
    from idp.evaluate.perplexity import summary

    write_json(folder / WINDOWS, losses)
    write_json(folder / PERPLEXITY, summary(losses, window))
