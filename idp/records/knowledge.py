"""What a run says of knowledge: each group's match with dense, and closed against open book, as Markdown."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from idp.records.differences import SCORE, difference_to, unit_of, with_interval
from idp.records.schema import IdpBlock, Record
from idp.stats.matching import AT_CHANCE
from idp.stats.open_book import KNOWLEDGE, READING

NAMES = {"verdict": "LLM-KICK's verdict", "ours": "with its interval"}


def folded(about: IdpBlock) -> set[str]:
    """Tasks that a table leaves to the rows of their groups: those of groups too large to be read one by one.

    Args:
        about: a record's `idp`.
    """
    groups = about.get("groups") or {}
    tasks = [next(iter(rows.values()))["tasks"] for rows in groups.values()]
    return {task for members in tasks if len(members) > LONG for task in members}


LONG = 9  # the nine tasks of Hoang et al. are read one by one


def sections(record: Record) -> list[str]:
    """The tables of a record, each with a line before it; nothing where it has no groups and no pairs."""
    about = record["idp"]
    lines: list[str] = []
    if about.get("groups") and (about.get("matching") or {}).get("mean"):
        lines += ["", *matching_section(about)]
    for closed, pair in (about.get("open_book") or {}).items():
        if any(found["steps"] for found in pair["metrics"].values()):
            lines += ["", *open_book_section(closed, pair)]
    return lines


def matching_section(about: IdpBlock) -> list[str]:
    """Each group's scores, and what share of dense's each model keeps: matched by the point, and by the interval."""
    rows, unit = list(about["matching"]["mean"]), unit_of(about)
    lines = []
    for group, found in about["groups"].items():
        for row in rows:
            lines.append(
                [
                    group,
                    len(found[row]["tasks"]),
                    row,
                    *_scores(found, row, unit),
                    *_kept(found[row].get("matching")),
                ]
            )
    hidden = folded(about)
    for task, found in about["matching"]["tasks"].items():
        if task not in hidden:
            lines += [[task, "", row, "", "", *_kept(found[row])] for row in rows]
    for row in rows:
        lines.append(["all tasks", len(about["data"]), row, "", "", *_kept(about["matching"]["mean"][row])])
    headers = ["group or task", "tasks", "model", "score", difference_to("dense", unit)]
    headers += ["share of dense kept (95 % CI)", *NAMES.values()]
    table = tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)
    caption = (
        "Matching: 95 % of dense's score is kept (LLM-KICK judges the scores alone; beside it, the whole interval):"
    )
    notes = []
    if any(line[-1] == AT_CHANCE for line in lines):
        notes = [
            "",
            f"{AT_CHANCE}: it cannot be told from a guess, so there is nothing to lose, and a match says nothing.",
        ]
    return [caption, "", table, *notes]


def open_book_section(closed: str, pair: dict[str, Any]) -> list[str]:
    """The same questions without and with their passage: what each step changes in either, and the difference."""
    lines = []
    for metric, found in pair["metrics"].items():
        for step in found["steps"]:
            lines.append(
                [
                    metric.split(",")[0],
                    f"{step['after']} minus {step['before']}",
                    *(f"{_of(found, step, side)} {with_interval(step[side], SCORE)}" for side in ("closed", "open")),
                    with_interval(step["difference"], SCORE),
                    " / ".join(_share(step[side]["kept"]) for side in ("closed", "open")),
                    _points(step["kept_difference"]),
                ]
            )
    headers = ["metric", "step", f"{closed}", pair["open"], "difference of the two", "kept: closed / open"]
    table = tabulate(lines, headers=[*headers, "difference of these"], tablefmt="github", disable_numparse=True)
    caption = f"Closed against open book, on the same {pair['questions']} questions, with 95 % intervals:"
    return [caption, "", table, "", *(f"- {line}" for line in conclusions(pair))]


def conclusions(pair: dict[str, Any]) -> list[str]:
    """In a sentence for each metric and step, whether it is knowledge or reading that is lost or brought back."""
    sentences = []
    for metric, found in pair["metrics"].items():
        for step in found["steps"]:
            says = _lost(step) if step["before"] == "dense" else _brought_back(step)
            sentences.append(f"{metric.split(',')[0]}: {says}")
    return sentences


def _lost(step: dict[str, Any]) -> str:
    """By the shares of dense's answers that are kept: who knows little has few points to lose."""
    if step["kept_difference"] is None:
        return f"dense answers too few questions to tell of which {step['after']} keeps less, knowledge or reading"
    if step["worse"] not in (KNOWLEDGE, READING):
        return f"whether {step['after']} keeps less of dense's knowledge or of its reading is undecided"
    other = READING if step["worse"] == KNOWLEDGE else KNOWLEDGE
    return f"{step['after']} keeps less of dense's {step['worse']} than of its {other}"


def _brought_back(step: dict[str, Any]) -> str:
    """By points: shares of what compression left may be of next to nothing."""
    test = step["difference"]
    if test["low"] <= 0 <= test["high"]:
        return "whether the repair brings back more knowledge or more reading is undecided"
    more, less = (READING, KNOWLEDGE) if test["low"] > 0 else (KNOWLEDGE, READING)
    return f"the repair does more for {more} than for {less}"


def _scores(group: dict[str, Any], row: str, unit: str) -> list[str]:
    dense, score = group["dense"]["score"], group[row]["score"]
    difference = group[row].get("difference", {}).get("dense")
    return [f"{dense:.3f} to {score:.3f}", with_interval(difference, unit)]


def _kept(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["", "", ""]
    shown = _share(found["ratio"])
    if found["ratio"] is not None:
        interval = found["interval"]
        shown += f" ({interval[0]:.0%} to {interval[1]:.0%})" if interval else " (no bounds)"
    return [shown, found["verdict"] or "", found["ours"]]


def _of(found: dict[str, Any], step: dict[str, Any], side: str) -> str:
    before, after = (found["scores"][step[end]][side] for end in ("before", "after"))
    return f"{before:.3f} to {after:.3f}:"


def _share(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.0%}"


def _points(found: dict[str, float] | None) -> str:
    if found is None:
        return ""
    return f"{100 * found['difference']:+.0f} points ({100 * found['low']:+.0f} to {100 * found['high']:+.0f})"
