"""A second dense model beside a study's own: the control for what only *this* dense model knew.

It may be any other model that was measured on the same documents, with `compressor=none recovery=none`; of several the
one that shares the most documents is taken, then the one of nearest accuracy: a rule that looks at no repair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from idp.records.collect import Collection
from idp.records.measured import DENSE, ModelScores
from idp.records.outcomes import outcomes

LIKE = 0.10  # of accuracy: a model that is further away is no control


@dataclass(frozen=True)
class Second:
    """A second dense model, on the documents that it shares with the first one.

    `right` are, of each task, its outcomes by document number. `accuracy` is the mean over those tasks of the dense
    model and of this one; `same`, the share of documents that both have right or both wrong.
    """

    model: ModelScores
    right: dict[str, dict[int, bool]]
    accuracy: tuple[float, float]
    same: float
    documents: int

    @property
    def alike(self) -> bool:
        """Whether it is of like accuracy, as a control must be."""
        return abs(self.accuracy[0] - self.accuracy[1]) <= LIKE

    @property
    def described(self) -> dict[str, Any]:
        """What is said of it, as JSON."""
        return {
            "model": self.model.model,
            "dtype": self.model.dtype,
            "run": self.model.runs[0],
            "tasks": list(self.right),
            "documents": self.documents,
            "accuracy": {"dense": self.accuracy[0], "other": self.accuracy[1]},
            "same": self.same,
            "like": self.alike,
        }

    @property
    def summary(self) -> str:
        """The same in a phrase."""
        mine, theirs = (f"{100 * accuracy:.1f}" for accuracy in self.accuracy)
        return (
            f"{self.model.model} ({theirs} % against {mine} % right, {100 * self.same:.0f} % of {self.documents}"
            " documents alike)"
        )


def second_dense(collection: Collection, dense: ModelScores) -> Second | None:
    """The control for a dense model among all that was collected; None where there is none.

    One of unlike accuracy is given where there is no other, so that it can be named; see `Second.alike`.
    """
    samples = {setting.id: setting.sample for setting in collection.settings}
    found = []
    for model in collection.models:
        if model.role == DENSE and model.model != dense.model and model.keys.get("load") != dense.keys.get("load"):
            second = _held_against(dense, model, samples)
            if second is not None:
                found.append(second)
    return min(found, key=_preferred, default=None)


def _preferred(second: Second) -> tuple[bool, int, float]:
    return not second.alike, -second.documents, abs(second.accuracy[0] - second.accuracy[1])


def _held_against(dense: ModelScores, model: ModelScores, samples: dict[str, dict[str, tuple]]) -> Second | None:
    right, mine, theirs, same = {}, [], [], []
    for task, score in dense.tasks.items():
        one, two = (samples[each.setting].get(f"task:{task}") for each in (dense, model))
        if not one or not two or one[:2] != two[:2]:  # what ran, and the fingerprint of its documents
            continue
        dense_outcomes, other_outcomes = outcomes(score), outcomes(model.tasks.get(task))
        if (
            dense_outcomes is None
            or other_outcomes is None
            or not all(np.isin(each.scores, (0, 1)).all() for each in (dense_outcomes, other_outcomes))
        ):
            continue
        _, first, second = np.intersect1d(dense_outcomes.doc_ids, other_outcomes.doc_ids, return_indices=True)
        if not len(first):
            continue
        one, two = dense_outcomes.scores[first] == 1, other_outcomes.scores[second] == 1
        right[task] = dict(zip(dense_outcomes.doc_ids[first].tolist(), two.tolist(), strict=True))
        mine.append(one.mean())
        theirs.append(two.mean())
        same.append((one == two).mean())
    if not right:
        return None
    accuracy = float(np.mean(mine)), float(np.mean(theirs))
    return Second(model, right, accuracy, float(np.mean(same)), sum(map(len, right.values())))


def shared(second: Second, doc_ids: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each task that both models were measured on, which of `doc_ids` they share, and the second's outcomes there.

    Args:
        second: the control.
        doc_ids: of each task [documents].

    Returns:
        of each task places in `doc_ids`, and whether the second model has those documents right.
    """
    found = {}
    for task, ids in doc_ids.items():
        right = second.right.get(task, {})
        places = np.array([place for place, identity in enumerate(ids.tolist()) if identity in right], int)
        if len(places):
            found[task] = places, np.array([right[identity] for identity in ids[places].tolist()])
    return found
