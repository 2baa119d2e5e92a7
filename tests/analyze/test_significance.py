"""Each test against a plain one, or against what it must do by its definition."""

import itertools
import math
import random

import numpy as np
import pytest

from idp.analyze.significance import equivalence, holm, mcnemar, paired_bootstrap


def binomial_test(gained, lost):
    """Two-sided, for a fair coin: twice the smaller tail."""
    n, few = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(few + 1)) / 2**n)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 3), (2, 9), (30, 12), (0, 8)])
def test_mcnemar_is_the_exact_binomial_test(gained, lost):
    before = np.array([0] * gained + [1] * lost + [0, 1, 1], bool)
    after = np.array([1] * gained + [0] * lost + [0, 1, 1], bool)
    assert mcnemar(before, after) == pytest.approx(binomial_test(gained, lost))
    assert mcnemar(after, before) == mcnemar(before, after)


def test_mcnemar_refuses_other_documents():
    with pytest.raises(ValueError, match="3 and 2 documents"):
        mcnemar(np.ones(3, bool), np.ones(2, bool))


def plain_bootstrap(tasks, draws, seed):
    """The same by the book: documents drawn one by one, and runs, one fewer than there are."""
    draw, found = random.Random(seed), []
    runs = [len(side) for side in next(iter(tasks.values()))]
    for _ in range(draws):
        taken = [draw.choices(range(count), k=max(1, count - 1)) for count in runs]
        parts = []
        for pair in tasks.values():
            documents = draw.choices(range(len(pair[0][0])), k=len(pair[0][0]))
            means = [
                sum(side[run][document] for run in chosen for document in documents) / len(chosen) / len(documents)
                for side, chosen in zip(pair, taken, strict=True)
            ]
            parts.append(means[1] - means[0])
        found.append(sum(parts) / len(parts))
    return sorted(found)


def outcomes(shape, share, seed):
    return (np.random.default_rng(seed).random(shape) < share).astype(float)


@pytest.mark.parametrize("runs", [(1, 1), (1, 3), (2, 4)])
def test_the_bootstrap_is_the_plain_one(runs):
    tasks = {
        name: tuple(
            outcomes((count, documents), share, [number, side])
            for side, (share, count) in enumerate(zip((0.45, 0.55), runs, strict=True))
        )
        for number, (name, documents) in enumerate({"a": 40, "b": 70}.items())
    }
    found = paired_bootstrap(tasks, seed=1)
    plain = plain_bootstrap({name: [side.tolist() for side in pair] for name, pair in tasks.items()}, 3000, 2)
    assert found.difference == pytest.approx(
        np.mean([after.mean() - before.mean() for before, after in tasks.values()])
    )
    assert found.low == pytest.approx(plain[75], abs=0.02) and found.high == pytest.approx(plain[2925], abs=0.02)
    below = sum(value <= 0 for value in plain) / len(plain)
    assert found.p == pytest.approx(2 * min(below, 1 - below), abs=0.03)
    assert found == paired_bootstrap(tasks, seed=1) != paired_bootstrap(tasks, seed=2)
    swapped = paired_bootstrap({name: (after, before) for name, (before, after) in tasks.items()}, seed=1)
    assert swapped.difference == pytest.approx(-found.difference)
    assert swapped.low == pytest.approx(-found.high, abs=0.01) and swapped.p == pytest.approx(found.p, abs=0.03)


def test_pairing_counts():
    """Two models that differ on few documents are told apart better than two as far apart on unlike documents."""
    before = outcomes(200, 0.5, 0)
    after = before.copy()
    after[np.flatnonzero(before == 0)[:10]] = 1
    paired = paired_bootstrap({"task": (before, after)})
    shuffled = paired_bootstrap({"task": (before, np.random.default_rng(1).permutation(after))})
    assert paired.difference == pytest.approx(shuffled.difference) == pytest.approx(0.05)
    assert paired.p < 0.01 < 0.2 < shuffled.p
    assert paired.high - paired.low < (shuffled.high - shuffled.low) / 2


def test_runs_that_differ_widen_the_interval():
    before = np.zeros((1, 400))
    alike = np.concatenate([np.ones((3, 200)), np.zeros((3, 200))], axis=1)
    unlike = alike.copy()
    unlike[0], unlike[2] = 0, 1  # runs of 0, 0.5 and 1: the same mean
    few, wide = (paired_bootstrap({"t": (before, after)}) for after in (alike, unlike))
    assert few.difference == wide.difference == pytest.approx(0.5)
    assert wide.high - wide.low > 5 * (few.high - few.low)


def test_runs_are_drawn_with_their_right_variance():
    """The spread of the mean of k runs is s / sqrt(k), with s the sample deviation."""
    values = [0.2, 0.3, 0.7, 0.4]
    after = np.repeat(np.array(values)[:, None], 50, axis=1)  # no spread between documents
    found = paired_bootstrap({"t": (np.zeros(50), after)}, level=0.3173)  # one deviation either way
    assert (found.high - found.low) / 2 == pytest.approx(np.std(values, ddof=1) / 2, rel=0.15)


def test_equals_do_not_differ():
    same = outcomes(30, 0.5, 0)
    assert paired_bootstrap({"t": (same, same)}).p == 1
    assert paired_bootstrap({"t": (same, same)}).low == paired_bootstrap({"t": (same, same)}).high == 0


def test_equivalence_needs_evidence():
    before = outcomes(2000, 0.5, 0)
    after = before.copy()
    after[:8] = 1 - after[:8]
    close = equivalence({"t": (before, after)}, margin=0.01)
    assert close.p < 0.05 and -0.01 < close.low <= close.high < 0.01
    few = equivalence({"t": (before[:60], outcomes(60, 0.5, 7))}, margin=0.01)
    assert few.p > 0.05 and (few.low < -0.01 or few.high > 0.01)
    # The margin's two sides are one-sided tests at 5 %, so its interval is the 90 % one.
    drawn = paired_bootstrap({"t": (before, after)}, level=0.1)
    assert (close.low, close.high) == (drawn.low, drawn.high)
    # Documents on which nothing differs are evidence by their number alone.
    alike = [equivalence({"t": (before[:count], before[:count])}, margin=0.01).p for count in (8, 250, 350)]
    assert alike == pytest.approx([0.99**8, 0.99**250, 0.99**350], rel=1e-6)
    beyond = equivalence({"t": (np.zeros(50), np.ones(50))}, margin=0.5)  # better by far, so surely not worse
    assert beyond.p == beyond.not_better == pytest.approx(1) and beyond.not_worse < 0.001


def holm_by_steps(p_values):
    """The largest, over all values up to this one, of p times the number of values not yet passed."""
    ranked = sorted(p_values)
    return [
        min(1.0, max(p * (len(ranked) - rank) for rank, p in enumerate(ranked[: ranked.index(value) + 1])))
        for value in p_values
    ]


def test_holm():
    assert holm([]) == []
    assert holm([0.04]) == [0.04]
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    draw = random.Random(0)
    for count in range(1, 8):
        values = [draw.random() ** 3 for _ in range(count)]
        assert holm(values) == pytest.approx(holm_by_steps(values))
    for order in itertools.permutations([0.2, 0.01, 0.03]):
        assert dict(zip(order, holm(order), strict=True)) == pytest.approx({0.01: 0.03, 0.03: 0.06, 0.2: 0.2})


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({}, "no tasks"),
        ({"t": (np.ones(2), np.ones(3))}, "2 and 3 documents"),
        ({"t": (np.ones(0), np.ones(0))}, "0 and 0 documents"),
        ({"t": (np.ones((1, 2)), np.ones((2, 2))), "u": (np.ones(2), np.ones(2))}, "different numbers of runs"),
    ],
)
def test_what_cannot_be_compared_is_refused(tasks, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(tasks)
