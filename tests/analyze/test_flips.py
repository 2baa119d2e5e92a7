"""Every document is of one kind, against a plain loop."""

import itertools

import numpy as np
import pytest

from idp.stats.flips import flips

KINDS = {  # dense, compressed, repaired
    (1, 1, 1): {"kept"},
    (1, 1, 0): {"newly_broken"},
    (1, 0, 1): {"broken", "restored"},
    (1, 0, 0): {"broken", "still_broken"},
    (0, 1, 1): {"lucky"},
    (0, 1, 0): {"lucky"},
    (0, 0, 1): {"never_known", "learned"},
    (0, 0, 0): {"never_known"},
}


def test_every_way_is_named():
    draw = np.random.default_rng(0)
    documents = [*itertools.product((0, 1), repeat=3), *map(tuple, draw.integers(0, 2, (40, 3)).tolist())]
    found = flips(*np.array(documents, dtype=bool).T)
    kinds = set().union(*KINDS.values())
    for kind in kinds:
        expected = [place for place, document in enumerate(documents) if kind in KINDS[document]]
        assert getattr(found, kind).tolist() == expected, kind
    assert found.counts == {"documents": 48} | {kind: len(getattr(found, kind)) for kind in kinds}


def test_shares():
    dense = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0], bool)
    compressed = np.array([0, 0, 0, 1, 1, 0, 0, 1, 0], bool)
    repaired = np.array([1, 0, 1, 1, 0, 1, 0, 0, 0], bool)
    found = flips(dense, compressed, repaired)
    assert found.restored_share == pytest.approx(2 / 3)
    assert found.learned_share == pytest.approx(1 / 3)
    assert found.newly_broken_share == pytest.approx(1 / 2)
    none = flips(dense[5:6], dense[5:6], dense[5:6])
    assert none.restored_share is None and none.newly_broken_share is None and none.learned_share == 0


def test_unlike_lengths_are_refused():
    with pytest.raises(ValueError, match="outcomes of 2, 3 and 2 documents"):
        flips(np.ones(2), np.ones(3), np.ones(2))
