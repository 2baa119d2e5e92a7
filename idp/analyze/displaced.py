"""Displaced or forgotten: what became of the documents that compression broke, and of those that it did not.

A repair that brings knowledge back must gain on the documents that the dense model had right, and there alone. The
gain on those is free of the regression to the mean that the share of *broken* documents has: that share takes documents
which the compressed model, by chance or not, had wrong, so that any other model would have some of them right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from tabulate import tabulate

from idp.analyze import fate
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
from idp.analyze.second import Second, second_dense, shared
from idp.records.cell import Cell, complete
from idp.records.collect import Collection
from idp.records.outcomes import graded, outcomes, paired
from idp.stats.flips import flips
from idp.stats.significance import Interval

SCHEMA = 1
COMMAND = "python -m idp.run model=<another> compressor=none recovery=none task=<the same> budget=<the same>"


@dataclass(frozen=True)
class Fate:
    """What a repair did to the documents, each figure with its interval; one of nothing is left out.

    `gain_on_known`: of the documents that dense had right, the share that the repaired model has right less that of the
    compressed one; `gain_on_unknown` the same where dense was wrong; `specific_gain` the first minus the second.
    `restored`: of the documents that compression broke, the share that the repaired model has right; `learned` the same
    of those that neither dense nor compressed had right; `restored_beyond_learned` their difference; `newly_broken`: of
    the documents that dense and compressed had right, the share that the repaired model has wrong.

    `graded` are the gains in the probability of the right choice, where documents have choices. `control` are the gains
    held against a second dense model, as of `fate.controlled`; empty without one.
    """

    shares: dict[str, Interval]
    counts: list[dict[str, int]]  # of each run, as `Flips.counts`
    documents: int
    restored: list[set[tuple[str, int]]]  # of each run the documents that it brought back
    broken: int
    graded: dict[str, Interval]
    control: dict[str, Interval]
    graded_control: dict[str, Interval]


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
            second = second_dense(collection, dense.first)
            known = fate_of(dense, compressed, cell, second)
            if known is None:
                missing.append(f"{cell.name}: not on the same documents as the dense and the compressed model")
                continue
            fates[cell.name] = cell, known
            found.append(
                {
                    "repair": cell.name,
                    "runs": len(cell.members),
                    "documents": known.documents,
                    "counts": known.counts,
                    "shares": _as_json(known.shares),
                    "graded": _as_json(known.graded),
                    "control": None
                    if second is None
                    else second.described
                    | {"shares": _as_json(known.control), "graded": _as_json(known.graded_control)},
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


def fate_of(
    dense: Cell, compressed: Cell, repaired: Cell, second: Second | None = None, sure: bool = True
) -> Fate | None:
    """What a repair did to the documents that all three models were measured on; None where there are none.

    Of the dense and the compressed model the first run is taken: they are not trained. Only tasks whose documents are
    right or wrong count. A second dense model of unlike accuracy is no control, and is not used.
    `sure` says whether the gains in probability are wanted too, for which every choice's likelihoods are read.
    """
    scores, _ = together([one_run(dense), one_run(compressed), repaired])
    scores = {task: tables for task, tables in scores.items() if all(np.isin(t, (0, 1)).all() for t in tables)}
    if not scores:
        return None
    known, kept, fixed = ({task: tables[part] == 1 for task, tables in scores.items()} for part in range(3))
    known, kept = ({task: table[0] for task, table in side.items()} for side in (known, kept))
    counts, restored, broken = [], [], 0
    for run in range(len(repaired.members)):
        total: dict[str, int] = {}
        brought_back: set[tuple[str, int]] = set()
        for task, table in fixed.items():
            found = flips(known[task], kept[task], table[run])
            total = {kind: total.get(kind, 0) + count for kind, count in found.counts.items()}
            brought_back |= {(task, int(place)) for place in found.restored}
        counts.append(total)
        restored.append(brought_back)
        broken = total["broken"]
    chances = _sure(compressed, repaired, known) if sure else ({}, {})
    control: list[dict[str, Interval]] = [{}, {}]
    if second is not None and second.alike:
        hits = {task: outcomes(dense.first.tasks[task]) for task in known}
        doc_ids = {task: each.doc_ids for task, each in hits.items() if each is not None}
        control = [_controlled(known, side, doc_ids, second) for side in ((kept, fixed), chances)]
    return Fate(
        fate.fates(known, kept, fixed),
        counts,
        documents(scores),
        restored,
        broken,
        fate.gains({task: known[task] for task in chances[0]}, *chances) if chances[0] else {},
        *control,
    )


def _sure(compressed: Cell, repaired: Cell, known: fate.Tables) -> tuple[fate.Tables, fate.Tables]:
    """The probability of the right choice, of each task with choices: before [documents], after [runs, documents]."""
    before, after = {}, {}
    for task, right in known.items():
        found = paired([compressed.first, *repaired.members], task, graded)
        if found is not None and len(found[0]) == len(right):
            before[task], after[task] = found[0], np.stack(found[1:])
    return before, after


def _controlled(
    known: fate.Tables, sides: tuple[fate.Tables, fate.Tables], doc_ids: dict[str, np.ndarray], second: Second
) -> dict[str, Interval]:
    places = shared(second, {task: doc_ids[task] for task in sides[0]})
    if not places:
        return {}
    dense, before = ({task: side[task][chosen] for task, (chosen, _) in places.items()} for side in (known, sides[0]))
    after = {task: sides[1][task][:, chosen] for task, (chosen, _) in places.items()}
    return fate.controlled(dense, {task: right for task, (_, right) in places.items()}, before, after)


def confidence(dense: Cell, compressed: Cell, repaired: Cell) -> dict[str, Any] | None:
    """How probable the right choice is among the choices, where documents have choices; each task weighs the same.

    The likelihoods are normalised as the task's main metric has them, so that the most probable choice is the one that
    counts as the answer.

    Returns:
        of the documents that dense had right (`known`) and of those that it had wrong (`unknown`), the mean probability
        that each model gives the right choice, and `returned`, the share of what compression took that the repair gives
        back; None where no document has choices.
    """
    sides: list[dict[str, np.ndarray]] = [{}, {}, {}]
    right: dict[str, np.ndarray] = {}
    for task, score in dense.first.tasks.items():
        found = paired([dense.first, compressed.first, *repaired.members], task, graded)
        if found is None:
            continue
        if (hits := outcomes(score)) is not None:
            right[task] = hits.scores == 1
        for side, values in zip(sides, (found[0], found[1], np.stack(found[2:])), strict=True):
            side[task] = values
    if not right:
        return None
    result: dict[str, Any] = {"documents": sum(map(len, right.values()))}
    for name, chosen in (("known", right), ("unknown", {task: ~table for task, table in right.items()})):
        means = complete(fate.mean_of(side, chosen) for side in sides)
        if means is None:
            continue
        taken = means[0] - means[1]
        result[name] = dict(zip(("dense", "compressed", "repaired"), means, strict=True)) | {
            "documents": sum(int(table.sum()) for table in chosen.values()),
            "returned": (means[2] - means[1]) / taken if taken > 0 else None,
        }
    return result


def _as_json(found: dict[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: asdict(interval) for name, interval in found.items()}


def _overlaps(found: Sequence[tuple[Cell, Fate]]) -> list[dict[str, Any]]:
    """How far repairs of the same weights bring back the same documents: other repairs, and other seeds of one."""
    rows = []
    pairs = [(one, one) for one in found] + list(combinations(found, 2))
    for (cell, known), (other, its) in pairs:
        if weights_of(cell) != weights_of(other) or known.documents != its.documents:
            continue
        sets = (
            list(combinations(known.restored, 2))
            if cell is other
            else [(a, b) for a in known.restored for b in its.restored]
        )
        measured = [one for a, b in sets if (one := overlap(a, b, known.broken)) is not None]
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
        " `gain on known`: of the documents that dense had right, repaired minus compressed; `gain on unknown`: the"
        " same where dense was wrong. `restored`: of the documents that compression broke, those that the repair has"
        " right; `learned`: the same of documents that neither had right, the control; `newly broken`: of what"
        " compression had kept. `confidence`: the mean probability of the right choice on documents that dense had"
        " right: dense, compressed, repaired.",
        "",
    ]
    for setting in result["settings"]:
        lines += [f"## {setting['title']}", ""]
        names = (fate.KNOWN, fate.UNKNOWN, fate.RESTORED, fate.LEARNED, fate.BROKEN)
        rows = []
        for found in setting["repairs"]:
            sure = (found["confidence"] or {}).get("known")
            figures = " / ".join(f"{sure[name]:.3f}" for name in ("dense", "compressed", "repaired")) if sure else ""
            shares = [_percent(found["shares"].get(name)) for name in names]
            rows.append([found["repair"], found["runs"], found["counts"][0]["broken"], *shares, figures])
        headers = ["repair", "runs", "broken", *(name.replace("_", " ") for name in names), "confidence"]
        lines += [
            tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True) if rows else "No repair.",
            "",
            *(_control(setting["repairs"]) if rows else []),
        ]
        if setting["overlaps"]:
            rows = [
                [*found["repairs"], found["pairs_of_runs"], f"{found['jaccard']:.2f}", f"{found['by_chance']:.2f}"]
                for found in setting["overlaps"]
            ]
            headers = ["repair", "other repair, or other seed", "pairs of runs", "Jaccard", "by chance"]
            table = tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
            lines += ["Do they bring back the same documents?", "", table, ""]
        lines += [f"- not compared: {note}" for note in setting["not_compared"]]
    lines += [f"- {note}" for note in result["notes"]]
    return "\n".join(lines)


def _control(repairs: Sequence[dict[str, Any]]) -> list[str]:
    """The gains held against a second dense model, or how to measure one."""
    control = repairs[0]["control"]
    if control is None:
        return [
            "Is it dense's own knowledge? That takes a second dense model on the same documents, which never saw this"
            f" one; there is none among these records. Add one, of like accuracy: `{COMMAND}`",
            "",
        ]
    accuracy = control["accuracy"]
    about = (
        f"{control['model']}: {100 * accuracy['other']:.1f} % right against dense's {100 * accuracy['dense']:.1f} %, on"
        f" {control['documents']} documents; {100 * control['same']:.0f} % of them alike"
    )
    if not control["like"]:
        return [
            "Is it dense's own knowledge? The only other dense model is no control, its accuracy is too far off:"
            f" {about}. Add one: `{COMMAND}`",
            "",
        ]
    names = (fate.ALONE, fate.OTHERS, fate.CONTROL, fate.OWN)
    rows = [
        [
            found["repair"],
            *(_percent(found["control"]["shares"].get(name)) for name in names),
            _percent(found["control"]["graded"].get(fate.CONTROL)),
        ]
        for found in repairs
    ]
    headers = ["repair", "gain where dense alone was right", "where the other alone was", "difference"]
    headers += ["more than half is dense's own", "difference in probability"]
    return [
        f"Is it dense's own knowledge? Held against a second dense model, {about}. A repair that helps easy documents,"
        " or all alike, gains on both sorts of documents; one that brings back what dense knew gains on the first."
        " `more than half is dense's own`: the first gain less twice the second; above 0 speaks for it.",
        "",
        tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True),
        "",
    ]


def _percent(share: dict[str, Any] | None) -> str:
    if share is None:
        return ""
    return f"{100 * share['difference']:.1f} ({100 * share['low']:.1f} to {100 * share['high']:.1f})"
