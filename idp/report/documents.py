"""Documents for the page's behaviours view: the text once, and what each model made of it."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

from idp.records.cell import Cell
from idp.records.measured import Score
from idp.records.outcomes import outcomes
from idp.report.view import View

PER_TASK, ALL_MODELS = 200, 10_000  # documents with their text, at most: of a task, and times the number of models
CONTEXT, TEXT = 1500, 240  # characters shown of a context (its end is what the model answers) and of an answer
TEXTS = ["context", "choices", "target"]
ANSWERS = ["loglikelihoods", "generation", "prompt"]


def documents(view: View, room: int) -> dict[str, Any]:
    """What the behaviours view shows of one setting, in about `room` bytes of JSON.

    Of each row the model with the lowest seed is shown. Documents on which models differ come first, in random order;
    the counts are over all documents.

    Returns:
        `tasks`: of each, how many `documents` there are and the `shown` ones (id, context, choices, target);
        `models`: by row and task, one entry per shown document: `right`, `p` (percent, over the choices), `pick`,
        `text`, `prompt`; `prompts`: by row, the bank's names; `counts`: by row and task, how many documents have each
        pattern of right (1) and wrong (0) along the line from dense to the row.
    """
    import numpy as np

    rows = [row for row in view.rows if any(outcomes(score) for score in row.first.tasks.values())]
    found: dict[str, Any] = {"tasks": {}, "models": {}, "prompts": {}, "counts": {}}
    chosen: dict[str, np.ndarray] = {}
    most = max(20, min(PER_TASK, ALL_MODELS // max(1, len(rows))))
    for task in view.tasks:
        known = {row.id: each for row in rows if (each := outcomes(row.first.tasks.get(task))) is not None}
        if not known:
            continue
        ids = next(iter(known.values())).doc_ids
        right = {name: each.scores > 0.5 for name, each in known.items() if np.array_equal(each.doc_ids, ids)}
        for row in rows:
            if row.id in right:
                counts = _patterns([right[each.id] for each in line(view, row) if each.id in right])
                found["counts"].setdefault(row.id, {})[task] = counts
        votes = np.stack(list(right.values()))
        order = np.random.default_rng(0).permutation(len(ids))
        differ = np.any(votes, axis=0) & ~np.all(votes, axis=0)
        order = np.concatenate([order[differ[order]], order[~differ[order]]])[:most]
        chosen[task] = ids[order]
        found["tasks"][task] = {"documents": len(ids), "shown": []}
    lengths: dict[str, list[list[int]]] = {}
    for row in rows:
        _add(found, row, chosen, lengths)
        if row.first.selection:
            found["prompts"][row.id] = list(next(iter(row.first.selection.values())))
    return _fitted(found, room)


def line(view: View, row: Cell) -> list[Cell]:
    """The rows from dense to this one."""
    found = [row]
    while (above := view.parent(found[0])) is not None:
        found.insert(0, above)
    return found


def _patterns(right: list[Any]) -> dict[str, int]:
    import numpy as np

    code = sum((each.astype(int) << place for place, each in enumerate(reversed(right))), np.zeros(len(right[0]), int))
    counts = np.bincount(code, minlength=2 ** len(right))
    return {format(pattern, f"0{len(right)}b"): int(count) for pattern, count in enumerate(counts) if count}


def _add(found: dict[str, Any], row: Cell, chosen: dict[str, Any], lengths: dict[str, list[list[int]]]) -> None:
    """Adds what one model made of the chosen documents, and their texts where no model has brought them yet."""
    for task, ids in chosen.items():
        score = row.first.tasks.get(task)
        known = outcomes(score)
        if score is None or known is None:
            continue
        if task not in lengths:
            texts = _read(score, ids, TEXTS)
            found["tasks"][task]["shown"] = [_text(i, texts[i]) if i in texts else None for i in ids.tolist()]
            lengths[task] = [
                [max(1, len(choice.removeprefix(" "))) for choice in texts.get(i, {}).get("choices", [])]
                for i in ids.tolist()
            ]
        answers = _read(score, ids, ANSWERS)
        right = dict(zip(known.doc_ids.tolist(), (known.scores > 0.5).tolist(), strict=True))
        entry: dict[str, list[Any]] = {"right": [int(right[i]) if i in right else None for i in ids.tolist()]}
        details = [
            _answer(answers[i], each if score.metric.startswith("acc_norm") else None) if i in answers else {}
            for i, each in zip(ids.tolist(), lengths[task], strict=True)
        ]
        for key in ("p", "pick", "text", "prompt"):
            values = [answer.get(key) for answer in details]
            if any(value is not None for value in values):
                entry[key] = values
        found["models"].setdefault(row.id, {})[task] = entry


def _read(score: Score, ids: Any, columns: list[str]) -> dict[int, dict[str, Any]]:
    """Some columns of the chosen documents of one model on one task, by document."""
    import pyarrow as arrow
    from pyarrow import compute

    table = _table(score.samples, tuple(columns))
    mask = compute.and_(compute.equal(table["asked_for"], score.task), compute.equal(table["model"], score.row))
    mask = compute.and_(mask, compute.is_in(table["doc_id"], value_set=arrow.array(ids)))
    return {document.pop("doc_id"): document for document in table.filter(mask).to_pylist()}


@functools.lru_cache(maxsize=2)
def _table(path: Path, columns: tuple[str, ...]) -> Any:
    """The file of the last model or two: its tasks are asked for one after another."""
    from pyarrow import parquet

    return parquet.read_table(path, columns=["model", "asked_for", "doc_id", *columns], use_threads=False)


def _text(identity: int, document: dict[str, Any]) -> dict[str, Any]:
    context = document["context"]
    return {
        "id": identity,
        "context": context if len(context) <= CONTEXT else f"… {context[-CONTEXT:]}",
        "choices": [choice[:TEXT] for choice in document["choices"]],
        "target": _target(document["target"]),
    }


def _target(target: str) -> str:
    """The right choice as it stands, or the accepted answers, the first few of them."""
    try:
        accepted = json.loads(target)
    except ValueError:
        accepted = None
    return " | ".join(map(str, accepted[:8])) if isinstance(accepted, list) else target[:TEXT]


def _answer(document: dict[str, Any], lengths: list[int] | None) -> dict[str, Any]:
    """What a model made of a document; `lengths` of the choices, in characters, where they normalise its metric."""
    answer: dict[str, Any] = {"prompt": document["prompt"]}
    if document["generation"] is not None:
        answer["text"] = document["generation"].strip()[:TEXT]
    likelihoods = document["loglikelihoods"]
    if len(likelihoods) > 1:
        largest = max(likelihoods)
        weights = [math.exp(value - largest) for value in likelihoods]
        answer["p"] = [round(100 * weight / sum(weights)) for weight in weights]
        judged = [value / length for value, length in zip(likelihoods, lengths or [1] * len(likelihoods), strict=False)]
        answer["pick"] = judged.index(max(judged)) if judged else None
    elif likelihoods:
        answer["p"] = [round(100 * math.exp(min(0.0, likelihoods[0])))]
    return answer


def _fitted(found: dict[str, Any], room: int) -> dict[str, Any]:
    """Drops the last documents of each task until all fits."""
    size = len(json.dumps(found, ensure_ascii=False).encode())
    if size <= room:
        return found
    kept = max(1, int(max(len(task["shown"]) for task in found["tasks"].values()) * room / size))
    for task in found["tasks"].values():
        task["shown"] = task["shown"][:kept]
    for model in found["models"].values():
        for entry in model.values():
            for key, values in entry.items():
                entry[key] = values[:kept]
    return found
