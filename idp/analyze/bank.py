"""What the choice among a bank's prompts earned, from the outcomes of each prompt alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from idp.records.cell import Cell, complete
from idp.records.measured import ModelScores

Outcomes = dict[str, tuple[list[int], np.ndarray, np.ndarray]]  # of each task: documents, best, chosen


def best_and_chosen(cell: Cell) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    """Of each task what the bank's best prompt by held-out loss scored and what the chosen prompts did.

    Both come from the outcomes of each prompt alone, so they are paired. None where a run measured no such controls, or
    has no held-out losses, or the runs differ in their documents.

    Returns:
        of each task two [runs, documents], the greater the better.
    """
    found = complete(_of_run(run) for run in cell.members)
    if found is None:
        return None
    scores = {}
    for task in found[0]:
        runs = complete(outcomes.get(task) for outcomes in found)
        if runs is None or any(run[0] != runs[0][0] for run in runs):
            continue
        scores[task] = np.stack([run[1] for run in runs]), np.stack([run[2] for run in runs])
    return scores or None


def _of_run(run: ModelScores) -> Outcomes | None:
    from pyarrow import parquet

    from idp.evaluate.selection import OUTCOMES

    controls = run.controls
    files = [file for folder in run.folders if (file := Path(folder) / OUTCOMES).is_file()]
    if not controls or controls.get("heldout_loss") is None or not files:
        return None
    best = controls["prompts"][int(np.argmin(controls["heldout_loss"]))]
    found: dict[str, tuple[list[int], list[float], list[float]]] = {}
    for row in parquet.read_table(files[0]).to_pylist():
        if row["chosen"] is None:
            continue
        documents, first, second = found.setdefault(row["task"], ([], [], []))
        documents.append(row["doc_id"])
        first.append(row[best])
        second.append(row[controls["prompts"][row["chosen"]]])
    signs = {task: 1.0 if score.higher_is_better else -1.0 for task, score in run.tasks.items()}
    return {
        task: (documents, signs[task] * np.array(first), signs[task] * np.array(second))
        for task, (documents, first, second) in found.items()
    }
