"""Outcomes of documents for the page, which pairs any two models that its reader chooses: a bit a document."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from idp.records.cell import complete
from idp.records.outcomes import outcomes
from idp.report.view import View

if TYPE_CHECKING:
    import numpy as np


def embedded(view: View, room: int) -> dict[str, Any]:
    """The score of each document under every run of every row, the greater the better, in about `room` bytes.

    Returns:
        `documents`: of each task the sizes of the samples that were read of it (one, but where documents are missing);
        `rows`: by row and task, `sample`, its place in that list, and `runs`, of each run its scores: `b` and a bit a
        document where all are right or wrong, else `f` and float32, in base64; `left_out`: rows for which there was no
        room.
    """
    samples: dict[str, list[Any]] = {}
    rows: dict[str, dict[str, Any]] = {}
    left_out: list[str] = []
    for row in view.rows:
        found, size = {}, 0
        for task in view.tasks:
            each = complete(outcomes(model.tasks.get(task)) for model in row.members)
            if each is None or not _alike([one.doc_ids for one in each]):
                continue
            sign = 1.0 if row.first.tasks[task].higher_is_better else -1.0
            runs = [_encoded(sign * one.scores) for one in each]
            found[task] = {"sample": _place(samples.setdefault(task, []), each[0].doc_ids), "runs": runs}
            size += sum(map(len, runs)) + len(task) + 30
        if size > room:
            left_out.append(row.id)
        elif found:
            room -= size
            rows[row.id] = found
    return {
        "documents": {task: [len(ids) for ids in each] for task, each in samples.items()},
        "rows": rows,
        "left_out": left_out,
    }


def _alike(ids: list[np.ndarray]) -> bool:
    import numpy as np

    return all(np.array_equal(ids[0], other) for other in ids[1:])


def _place(samples: list[Any], ids: np.ndarray) -> int:
    import numpy as np

    for place, known in enumerate(samples):
        if np.array_equal(known, ids):
            return place
    samples.append(ids)
    return len(samples) - 1


def _encoded(scores: np.ndarray) -> str:
    import numpy as np

    right = scores == 1
    if (right | (scores == 0)).all():
        return "b" + base64.b64encode(np.packbits(right).tobytes()).decode()
    return "f" + base64.b64encode(scores.astype("<f4").tobytes()).decode()
