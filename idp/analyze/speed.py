"""Latency of one repair against another, from runs that each timed it beside the compressed model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from idp.config import EAGER
from idp.records.cell import Cell
from idp.records.measured import ModelScores
from idp.records.record import RECORD, load
from idp.records.schema import Latency
from idp.stats.significance import Interval

MEDIAN = math.sqrt(math.pi / 2)  # the standard error of a median, in those of a mean
WIDE = 1.96  # standard errors to either side of a 95 % interval


def reductions(idp: Cell, lora: Cell) -> list[tuple[str, Interval]]:
    """1 - IDP's latency / that of unmerged LoRA, at every batch size and input length that both were timed at.

    Each is taken as its ratio to the compressed model, which was timed in the same rounds, so that two runs of one
    machine may be compared though it was not equally fast. Runs on another device or in another dtype are not.

    Returns:
        what was compared, and the reduction with an approximate interval.
    """
    first, second = (next(((run, run.latency) for run in cell.members if run.latency), None) for cell in (idp, lora))
    if first is None or second is None or _ran(first[1]) != _ran(second[1]):
        return []
    mine, theirs = _rows(first[1], "idp"), _rows(second[1], "lora")
    rounds = [_rounds(run) for run, _ in (first, second)]
    found = []
    for shape in sorted(mine.keys() & theirs.keys()):
        for part in ("prefill", "decode"):
            one, other = mine[shape][part], theirs[shape][part]
            ratio = one["ratio"] / other["ratio"]
            error = math.hypot(*(_error(row, count) for row, count in zip((one, other), rounds, strict=True)))
            low, high = 1 - ratio * math.exp(WIDE * error), 1 - ratio * math.exp(-WIDE * error)
            what = f"{part}, {shape[0]} x {shape[1]} tokens: {idp.name} against {lora.recovery}"
            found.append((what, Interval(1 - ratio, low, high, math.nan)))
    return found


def _ran(latency: Latency) -> tuple:
    backend = latency["backend"]
    names = ("device", "dtype", "attention", "library", "threads")
    return latency["reference"], *(backend[name] for name in names), backend.get("decode", EAGER)


def _rows(latency: Latency, variant: str) -> dict[tuple[int, int], Mapping[str, Any]]:
    return {(row["batch_size"], row["input_tokens"]): row for row in latency["rows"] if row["variant"] == variant}


def _error(row: Mapping[str, Any], rounds: int) -> float:
    """The relative standard error of a median over rounds."""
    return MEDIAN * row["deviation"] / row["mean"] / math.sqrt(rounds)


def _rounds(run: ModelScores) -> int:
    """Over how many rounds a run's latency was taken, as its record says."""
    for folder in run.folders:
        about = load(folder / RECORD)["idp"]
        if about["latency"]:
            return int(about["config"]["latency"]["rounds"])
    raise ValueError(f"{run.runs}: a latency without a record")
