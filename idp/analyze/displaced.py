"""Displaced or forgotten: what became of the documents that compression broke, and of those that it did not.

A repair that brings knowledge back must gain on the documents that the dense model had right, and there alone. The
gain on those is free of the regression to the mean that the share of *broken* documents has: that share takes documents
which the compressed model, by chance or not, had wrong, so that any other model would have some of them right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from idp.analyze.cells import (
    cells_of,
    dense_of,
    documents,
    one_run,
    repairs,
    title,
    together,
    unrepaired_of,
    weights_of,
)
from idp.analyze.flips import flips
from idp.analyze.significance import Interval, run_weights, two_sided
from idp.report.cells import Cell
from idp.report.collect import Collection
from idp.report.measured import Measured
from idp.resampling import RESAMPLES, resampled_means

SCHEMA = 1
KNOWN, UNKNOWN, SPECIFIC = "gain_on_known", "gain_on_unknown", "specific_gain"
RESTORED, LEARNED, BROKEN, BEYOND = "restored", "learned", "newly_broken", "restored_beyond_learned"


@dataclass(frozen=True)
class Fate:
    """What a repair did to the documents, each figure with its interval; one of nothing is left out.

    `gain_on_known`: of the documents that dense had right, the share that the repaired model has right less that of the
    compressed one; `gain_on_unknown` the same where dense was wrong; `specific_gain` the first less the second.
    `restored`: of the documents that compression broke, the share that the repaired model has right; `learned` the same
    of those that neither dense nor compressed had right; `restored_beyond_learned` their difference; `newly_broken`: of
    the documents that dense and compressed had right, the share that the repaired model has wrong.
    """

    shares: dict[str, Interval]
    counts: list[dict[str, int]]  # of each run, as `Flips.counts`
    documents: int
    restored: list[set[tuple[str, int]]]  # of each run the documents that it brought back
    broken: int


def displaced(collection: Collection) -> dict[str, Any]:
    """The fate of every document under every repair, how far repairs agree, and how sure they are.

    Returns:
        JSON: of each setting its `repairs` and, for those on the same weights, their `overlaps`.
    """
    settings = []
    for setting in collection.settings:
        cells = cells_of(collection, setting)
        found, missing, fates = [], [], {}
        for cell in repairs(cells):
            dense, compressed = dense_of(cells, cell), unrepaired_of(cells, cell)
            if dense is None or compressed is None or dense is compressed:
                if cell.first.compressor != "none":
                    missing.append(f"{cell.name}: the dense or the compressed model was not measured")
                continue
            fate = fate_of(dense, compressed, cell)
            if fate is None:
                missing.append(f"{cell.name}: not on the same documents as the dense and the compressed model")
                continue
            fates[cell.name] = cell, fate
            found.append(
                {
                    "repair": cell.name,
                    "runs": len(cell.members),
                    "documents": fate.documents,
                    "counts": fate.counts,
                    "shares": {name: asdict(share) for name, share in fate.shares.items()},
                    "confidence": confidence(dense, compressed, cell),
                }
            )
        settings.append(
            {
                "title": title(collection, setting),
                "model": setting.model,
                "dtype": setting.dtype,
                "repairs": found,
                "overlaps": _overlaps(list(fates.values())),
                "not_compared": missing,
            }
        )
    return {"schema": SCHEMA, "settings": settings, "notes": collection.notes}


def fate_of(dense: Cell, compressed: Cell, repaired: Cell, seed: int = 0) -> Fate | None:
    """What a repair did to the documents that all three models were measured on; None where there are none.

    Of the dense and the compressed model the first run is taken: they are not trained. Only tasks whose documents are
    right or wrong count.
    """
    scores, _ = together([one_run(dense), one_run(compressed), repaired])
    scores = {task: tables for task, tables in scores.items() if all(np.isin(t, (0, 1)).all() for t in tables)}
    if not scores:
        return None
    right = {task: [table == 1 for table in tables] for task, tables in scores.items()}
    counts, restored, broken = [], [], 0
    for run in range(len(repaired.members)):
        total: dict[str, int] = {}
        brought_back: set[tuple[str, int]] = set()
        for task, (known, kept, fixed) in right.items():
            found = flips(known[0], kept[0], fixed[run])
            total = {kind: total.get(kind, 0) + count for kind, count in found.counts.items()}
            brought_back |= {(task, int(place)) for place in found.restored}
        counts.append(total)
        restored.append(brought_back)
        broken = total["broken"]
    return Fate(_shares(right, seed), counts, documents(scores), restored, broken)


def _shares(right: dict[str, list[np.ndarray]], seed: int) -> dict[str, Interval]:
    """Ratios of means over tasks, and their bootstrap over documents and runs."""
    tables, runs = [], len(next(iter(right.values()))[2])
    for known, compressed, repaired in right.values():
        known, compressed = known[0], compressed[0]
        conditions = _conditions(known, compressed)
        fixed = [(condition & repaired).T for condition in conditions]
        tables.append(np.concatenate([*fixed, np.stack(conditions, axis=1)], axis=1).astype(float))
    generator = np.random.default_rng(seed)
    drawn = resampled_means(tables, generator)
    exact = np.mean([table.mean(0) for table in tables], axis=0)[None]
    weights = run_weights(runs, RESAMPLES, generator)
    observed, resampled = _ratios(exact, np.full((1, runs), 1 / runs)), _ratios(drawn, weights)
    found = {}
    for name, [value] in observed.items():
        spread = resampled[name][np.isfinite(resampled[name])].round(12)
        if np.isfinite(value) and len(spread):
            low, high = np.quantile(spread, [0.025, 0.975])
            found[name] = Interval(float(value), float(low), float(high), two_sided(spread))
    return found


def _conditions(known: np.ndarray, compressed: np.ndarray) -> list[np.ndarray]:
    """Documents that compression broke, never known ones, kept ones, lucky ones; each [documents]."""
    return [known & ~compressed, ~known & ~compressed, known & compressed, ~known & compressed]


def _ratios(means: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The shares of each resample, [resamples]; not a number where a share is of nothing.

    Args:
        means: [resamples, columns] as `_shares` lays them out: repaired right of each condition and run, then how many
            documents there are of each condition.
        weights: [resamples, runs].
    """
    runs = weights.shape[1]
    fixed = [(means[:, part * runs : (part + 1) * runs] * weights).sum(1) for part in range(4)]
    broken, never, kept, lucky = means[:, 4 * runs : 4 * runs + 4].T
    with np.errstate(invalid="ignore", divide="ignore"):
        on_known = (fixed[0] + fixed[2] - kept) / (broken + kept)
        on_unknown = (fixed[1] + fixed[3] - lucky) / (never + lucky)
        restored, learned = fixed[0] / broken, fixed[1] / never
        return {
            KNOWN: on_known,
            UNKNOWN: on_unknown,
            SPECIFIC: on_known - on_unknown,
            RESTORED: restored,
            LEARNED: learned,
            BEYOND: restored - learned,
            BROKEN: 1 - fixed[2] / kept,
        }


def confidence(dense: Cell, compressed: Cell, repaired: Cell) -> dict[str, Any] | None:
    """How probable the right choice is among the choices, where documents have choices.

    Returns:
        of the documents that dense had right (`known`) and of those that it had wrong (`unknown`), the mean probability
        that each model gives the right choice, and `returned`, the share of what compression took that the repair gives
        back; None where no document has choices.
    """
    sides = [_probabilities(cell.members) for cell in (one_run(dense), one_run(compressed), repaired)]
    shared = sorted(set.intersection(*(set(side) for side in sides)))
    if not shared:
        return None
    values = [np.array([side[document][0] for document in shared]) for side in sides]
    known = np.array([sides[0][document][1] for document in shared], bool)
    result: dict[str, Any] = {"documents": len(shared)}
    for name, chosen in (("known", known), ("unknown", ~known)):
        if not chosen.any():
            continue
        means = [float(value[chosen].mean()) for value in values]
        taken = means[0] - means[1]
        result[name] = dict(zip(("dense", "compressed", "repaired"), means, strict=True)) | {
            "documents": int(chosen.sum()),
            "returned": (means[2] - means[1]) / taken if taken > 0 else None,
        }
    return result


def _probabilities(runs: Sequence[Measured]) -> dict[tuple[str, int], tuple[float, bool]]:
    """Of each document with choices, the probability of the right one, the mean over runs, and whether it was right."""
    found: dict[tuple[str, int], list[tuple[float, bool]]] = {}
    for run in runs:
        for task, score in run.tasks.items():
            if score.samples is not None:
                for document, value in _of_file(score.samples, score.row, task, f"metric:{score.metric}").items():
                    found.setdefault((task, document), []).append(value)
    return {
        document: (float(np.mean([value for value, _ in values])), values[0][1])
        for document, values in found.items()
        if len(values) == len(runs)
    }


def _of_file(file: Path, row: str, task: str, metric: str) -> dict[int, tuple[float, bool]]:
    from pyarrow import compute, parquet

    wanted = (compute.field("model") == row) & (compute.field("asked_for") == task)
    columns = ["doc_id", "choices", "loglikelihoods", "target", metric]
    found = {}
    for document in parquet.read_table(file, columns=columns, filters=wanted).to_pylist():
        choices, target = document["choices"] or [], document["target"]
        if len(choices) > 1 and target in choices:
            nats = np.array(document["loglikelihoods"], float)
            shares = np.exp(nats - nats.max())
            right = shares[[choice == target for choice in choices]].sum()
            found[document["doc_id"]] = float(right / shares.sum()), document[metric] == 1
    return found


def _overlaps(found: Sequence[tuple[Cell, Fate]]) -> list[dict[str, Any]]:
    """How far repairs of the same weights bring back the same documents: other repairs, and other seeds of one."""
    rows = []
    pairs = [(one, one) for one in found] + list(combinations(found, 2))
    for (cell, fate), (other, its) in pairs:
        if weights_of(cell) != weights_of(other) or fate.documents != its.documents:
            continue
        sets = (
            list(combinations(fate.restored, 2))
            if cell is other
            else [(a, b) for a in fate.restored for b in its.restored]
        )
        measured = [overlap(a, b, fate.broken) for a, b in sets]
        measured = [one for one in measured if one is not None]
        if measured:
            mean = {name: float(np.mean([one[name] for one in measured])) for name in ("jaccard", "by_chance")}
            rows.append({"repairs": [cell.name, other.name], "pairs_of_runs": len(measured), **mean})
    return rows


def overlap(one: set, other: set, broken: int) -> dict[str, float] | None:
    """The Jaccard index of two sets of restored documents, and what chance would give; None for two empty ones.

    Args:
        one: documents that one repair brought back; `other` likewise.
        other: see above.
        broken: documents that compression broke, from which both are drawn. By chance means that each repair brings
            back as many as it does, drawn from all of these alike.
    """
    from scipy.stats import hypergeom

    if not one | other:
        return None
    both = np.arange(min(len(one), len(other)) + 1)
    probability = hypergeom(broken, len(one), len(other)).pmf(both)
    by_chance = float((probability * both / (len(one) + len(other) - both)).sum())
    return {"jaccard": len(one & other) / len(one | other), "by_chance": by_chance}


def page(result: dict[str, Any]) -> str:
    """The analysis as Markdown."""
    lines = ["# Displaced or forgotten", ""]
    lines += [
        "Percent of documents, each task weighing the same, with 95 % intervals over documents and runs."
        " `gain on known`: of the documents that dense had right, repaired less compressed; `gain on unknown`: the same"
        " where dense was wrong. `restored`: of the documents that compression broke, those that the repair has right;"
        " `learned`: the same of documents that neither had right, the control; `newly broken`: of what compression"
        " had kept. `confidence`: the mean probability of the right choice on documents that dense had right: dense,"
        " compressed, repaired.",
        "",
    ]
    for setting in result["settings"]:
        lines += [f"## {setting['title']}", ""]
        names = (KNOWN, UNKNOWN, RESTORED, LEARNED, BROKEN)
        rows = []
        for found in setting["repairs"]:
            sure = (found["confidence"] or {}).get("known")
            said = " / ".join(f"{sure[name]:.3f}" for name in ("dense", "compressed", "repaired")) if sure else ""
            shares = [_percent(found["shares"].get(name)) for name in names]
            rows.append([found["repair"], found["runs"], found["counts"][0]["broken"], *shares, said])
        headers = ["repair", "runs", "broken", *(name.replace("_", " ") for name in names), "confidence"]
        lines += [
            tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True) if rows else "No repair.",
            "",
        ]
        if setting["overlaps"]:
            rows = [
                [*found["repairs"], found["pairs_of_runs"], f"{found['jaccard']:.2f}", f"{found['by_chance']:.2f}"]
                for found in setting["overlaps"]
            ]
            headers = ["repair", "other repair, or other seed", "pairs of runs", "Jaccard", "by chance"]
            table = tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
            lines += ["Do they bring back the same documents?", "", table, ""]
        lines += [f"- not compared: {said}" for said in setting["not_compared"]]
    lines += [f"- {note}" for note in result["notes"]]
    return "\n".join(lines)


def _percent(share: dict[str, Any] | None) -> str:
    if share is None:
        return ""
    return f"{100 * share['difference']:.1f} ({100 * share['low']:.1f} to {100 * share['high']:.1f})"
