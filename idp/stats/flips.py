"""What became of each document: broken by compression, brought back by the repair, or broken by the repair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Flips:
    """Indices of documents by what became of them, ascending.

    Two of them start from the same place, a wrong answer of the compressed model: `broken` documents, which dense had
    right, and documents `never_known`, which dense had wrong as well. A repair that only shuffles answers turns right
    as many of the second as guessing would, so what it restores of the first is to be held against them.
    """

    documents: int
    kept: np.ndarray  # right in all three
    broken: np.ndarray  # dense right, compressed wrong
    restored: np.ndarray  # of the broken: repaired right
    still_broken: np.ndarray  # of the broken: repaired wrong
    newly_broken: np.ndarray  # dense and compressed right, repaired wrong
    lucky: np.ndarray  # dense wrong, compressed right
    never_known: np.ndarray  # dense and compressed wrong
    learned: np.ndarray  # of the never known: repaired right

    @property
    def counts(self) -> dict[str, int]:
        """How many documents there are of each kind."""
        kinds = {name: len(found) for name, found in vars(self).items() if name != "documents"}
        return {"documents": self.documents, **kinds}

    @property
    def restored_share(self) -> float | None:
        """Of the documents that compression broke, the share that the repair has right; None where it broke none."""
        return _share(self.restored, self.broken)

    @property
    def learned_share(self) -> float | None:
        """The same of documents that neither the dense nor the compressed model had right: the control."""
        return _share(self.learned, self.never_known)

    @property
    def newly_broken_share(self) -> float | None:
        """Of the documents that compression had kept, the share that the repair breaks."""
        return _share(self.newly_broken, np.concatenate([self.kept, self.newly_broken]))


def flips(dense: np.ndarray, compressed: np.ndarray, repaired: np.ndarray) -> Flips:
    """Sorts documents by which of three models has them right.

    Args:
        dense: [documents], whether the dense model has each right; `compressed` and `repaired` likewise, in the same
            order.

    Raises:
        ValueError: of different lengths.
    """
    dense, compressed, repaired = (np.asarray(right, dtype=bool) for right in (dense, compressed, repaired))
    if not len(dense) == len(compressed) == len(repaired):
        raise ValueError(f"outcomes of {len(dense)}, {len(compressed)} and {len(repaired)} documents")
    broken, known, unknown = dense & ~compressed, dense & compressed, ~dense & ~compressed

    def where(condition: np.ndarray) -> np.ndarray:
        return np.flatnonzero(condition)

    return Flips(
        documents=len(dense),
        kept=where(known & repaired),
        broken=where(broken),
        restored=where(broken & repaired),
        still_broken=where(broken & ~repaired),
        newly_broken=where(known & ~repaired),
        lucky=where(~dense & compressed),
        never_known=where(unknown),
        learned=where(unknown & repaired),
    )


def _share(part: np.ndarray, whole: np.ndarray) -> float | None:
    return len(part) / len(whole) if len(whole) else None
