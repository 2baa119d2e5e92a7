"""Every figure of a report in a line of its own, with its bounds, unit, and how many it is of: CSV and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from idp.records.cell import PARTS, Cell
from idp.records.measured import REPAIRED
from idp.report.comparisons import Difference
from idp.report.costs import cost_table
from idp.report.formats import Entry
from idp.report.intervals import interval_of_score
from idp.report.nine_tasks import score_table
from idp.report.view import View

NUMBERS = (
    "value",
    "low",
    "high",
    "stderr",
    "deviation",
    "p",
    "p_adjusted",
    "detectable",
    "newly_right",
    "newly_broken",
)
COUNTS = ("runs", "n", "documents_to_decide")
TEXTS = (
    "setting",
    "row",
    "role",
    "model",
    "dtype",
    "compressor",
    "recovery",
    "seeds",
    "figure",
    "of",
    "metric",
    "unit",
)
FIELDS = (
    *TEXTS,
    *("runs", "value", "low", "high", "n", "n_of", "stderr", "deviation", "against"),
    *("p", "p_adjusted", "test", "newly_right", "newly_broken", "detectable", "documents_to_decide", "stand_in"),
)
SHARE_OF_DAMAGE, NATS = "share of the damage", "nats per token"
WEIGHTS = {  # of the cost table: what it is called here, its unit, and the unit's factor
    "added": ("added parameters", "parameters", 1),
    "sparsity": ("sparsity", "share of weights", 1),
    "bits": ("bits per weight", "bits", 1),
    "packed": ("packed size", "bytes", 1e6),
    "effective": ("effective size", "bytes", 1e6),
    "device": ("peak accelerator memory", "bytes", 2**30),
    "host": ("peak host memory", "bytes", 2**30),
}


def figures(made: Sequence[View]) -> list[dict[str, Any]]:
    """A line for each figure that a row has, by `FIELDS`; what a figure does not have is None.

    `low` and `high` are the ends of its 95 % interval, `n` how many of `n_of` (documents, tokens) it is of, `of` the
    task, group of tasks or text, `against` the row that a difference is to.
    """
    lines = []
    for view in made:
        scores, costs = score_table(view).rows, cost_table(view).rows
        for row, of_scores, of_costs in zip(view.rows, scores, costs, strict=False):  # unfinished runs come last
            names = {
                **{"setting": view.title, "row": row.name, "role": row.first.role, "model": row.first.model},
                **{"dtype": row.first.dtype, "compressor": row.compressor, "recovery": row.recovery},
                **{"seeds": row.seeds_label, "runs": row.runs},
            }
            found = [*_scores(view, row, of_scores), *_differences(view, row), *_costs(view, row, of_costs)]
            lines += [dict.fromkeys(FIELDS) | names | line for line in found]
    return lines


def comma_separated(lines: Sequence[Mapping[str, Any]]) -> str:
    """As CSV, numbers in full; a missing figure is empty."""
    written = io.StringIO()
    writer = csv.DictWriter(written, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _in_full(value) for key, value in line.items()} for line in lines)
    return written.getvalue()


def write_parquet(lines: Sequence[Mapping[str, Any]], file: Path) -> None:
    """As Parquet: texts, float64 and int64, each with missing values."""
    import pyarrow as arrow
    from pyarrow import parquet

    kinds = dict.fromkeys(NUMBERS, arrow.float64()) | dict.fromkeys(COUNTS, arrow.int64())
    schema = arrow.schema([(name, kinds.get(name, arrow.string())) for name in FIELDS])
    parquet.write_table(arrow.Table.from_pylist([dict(line) for line in lines], schema), file)


def _scores(view: View, row: Cell, entries: Mapping[str, Entry]) -> Iterator[dict[str, Any]]:
    for key in view.headings:
        entry = entries.get(key)
        if entry is None or entry.value is None:
            continue
        low, high = interval_of_score(row, view.members(key))
        more = entry.more
        yield {
            **{"figure": "score", "of": key, "unit": view.unit, "value": entry.value, "low": low, "high": high},
            **{"metric": more.get("metric"), "n": more.get("documents"), "n_of": "documents"},
            **{"stderr": entry.stderr, "deviation": entry.spread, "stand_in": more.get("stand-in")},
        }
    if (share := entries.get("brought back")) is not None and share.value is not None:
        documents = sum(row.first.tasks[task].documents for task in view.tasks if task in row.first.tasks)
        yield {
            **{"figure": "damage brought back", "of": "mean", "unit": SHARE_OF_DAMAGE, "value": share.value},
            **{"low": share.low, "high": share.high, "n": documents, "n_of": "documents"},
        }


def _differences(view: View, row: Cell) -> Iterator[dict[str, Any]]:
    names = {each.id: each.name for each in view.rows}
    own, to_dense = view.compared.get(row.id), view.to_dense.get(row.id)
    compared = [own, *([to_dense] if row.first.role == REPAIRED and to_dense is not own else [])]
    for comparison in compared:
        for key in view.headings if comparison is not None else ():
            if comparison is None or (found := comparison.of(key)) is None:
                continue
            yield {"of": key, "against": names.get(comparison.before), "unit": view.unit, **_difference(found)}


def _difference(found: Difference) -> dict[str, Any]:
    return {
        **{"figure": "difference", "value": found.difference, "low": found.low, "high": found.high},
        **{"n": found.documents, "n_of": "documents", "p": found.p, "p_adjusted": found.adjusted, "test": found.test},
        **{"newly_right": found.gained, "newly_broken": found.lost, "detectable": found.detectable},
        "documents_to_decide": found.documents_to_decide,
    }


def _costs(view: View, row: Cell, entries: Mapping[str, Entry]) -> Iterator[dict[str, Any]]:
    for corpus in view.setting.corpora:
        if (entry := entries.get(f"{corpus} perplexity")) is not None and entry.value is not None:
            yield {
                **{"figure": "perplexity", "of": corpus, "unit": "perplexity", "value": entry.value},
                **{"low": entry.low, "high": entry.high, "n": entry.more.get("tokens"), "n_of": "tokens"},
                "deviation": entry.spread,
            }
    for key, entry in entries.items():
        if key.endswith(" KL") and entry.value is not None:
            tokens = entry.more.get("tokens")
            yield {
                **{"figure": "KL to dense", "of": key.removesuffix(" KL"), "unit": NATS, "value": entry.value},
                **{"low": entry.low, "high": entry.high, "stderr": entry.stderr, "deviation": entry.spread},
                **{"n": int(tokens) if isinstance(tokens, (int, float)) else None, "n_of": "tokens"},
            }
    for key, (figure, unit, factor) in WEIGHTS.items():
        if (entry := entries.get(key)) is not None and entry.value is not None:
            yield {"figure": figure, "unit": unit, "value": float(entry.value * factor)}
    for part in PARTS:
        if (entry := entries.get(part)) is not None and entry.value is not None:
            yield {"figure": f"{part} latency", "unit": "ratio to compressed", "value": entry.value}


def _in_full(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)
