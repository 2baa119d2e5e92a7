"""Each test against a plain one, or against what it must do by its definition."""

import itertools
import math
import random
import statistics

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from idp.stats.significance import comparison, equivalence, holm, mcnemar, paired_interval, t_test, unseen
from idp.stats.variance import estimate
from tests.analyze.simulations import Design, simulate


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


def outcomes(shape, share, seed):
    return (np.random.default_rng(seed).random(shape) < share).astype(float)


def plain_t(differences):
    """The paired t-test of single runs by the book: interval and p of the mean of one task's differences."""
    return ttest_1samp(differences, 0).confidence_interval(0.95), ttest_1samp(differences, 0).pvalue


def test_one_task_of_single_runs_is_the_paired_t_test():
    before, after = outcomes(80, 0.5, 0), outcomes(80, 0.65, 1)
    found = paired_interval({"task": (before, after)})
    interval, p = plain_t(after - before)
    assert (found.low, found.high, found.p) == pytest.approx((interval.low, interval.high, p))
    assert t_test({"task": (before, after)}) == found.p
    swapped = paired_interval({"task": (after, before)})
    assert (swapped.low, swapped.high, swapped.p) == pytest.approx((-found.high, -found.low, found.p))


def test_tasks_weigh_the_same_and_their_variances_add():
    tasks = {"a": (outcomes(40, 0.4, 0), outcomes(40, 0.6, 1)), "b": (outcomes(900, 0.4, 2), outcomes(900, 0.6, 3))}
    found = paired_interval(tasks)
    differences = [after - before for before, after in tasks.values()]
    errors = [each.std(ddof=1) / len(each) ** 0.5 for each in differences]
    assert found.difference == pytest.approx(np.mean([each.mean() for each in differences]))
    assert (found.high - found.low) / 2 == pytest.approx(2 * np.hypot(*errors) / 2, rel=0.02)


@pytest.mark.parametrize("runs", [(1, 3), (3, 3), (2, 5)])
def test_the_variance_is_that_of_documents_and_of_what_runs_add(runs):
    """Against the sums of squares written out, run by run and document by document."""
    luck = [np.random.default_rng(side).normal(0, 0.06, count) for side, count in enumerate(runs)]
    tasks = {}
    for number, documents in enumerate((60, 90)):
        ease = np.random.default_rng(number).random(documents)
        draw = np.random.default_rng([number, 9])
        tasks[number] = tuple((ease < 0.5 + own[:, None] + draw.normal(0, 0.1, (len(own), documents))) for own in luck)
    documents_part = own_part = 0.0
    for before, after in tasks.values():
        differences = [a - b for b, a in zip(before.mean(0).tolist(), after.mean(0).tolist(), strict=True)]
        documents_part += statistics.variance(differences) / len(differences) / len(tasks) ** 2
    for side, count in enumerate(runs):
        if count == 1:
            continue
        means = [np.mean([tables[side][run].mean() for tables in tasks.values()]) for run in range(count)]
        noise = 0.0
        for tables in tasks.values():
            table = tables[side].astype(float)
            squares = sum(
                (table[r, d] - table[r].mean() - table[:, d].mean() + table.mean()) ** 2
                for r in range(count)
                for d in range(table.shape[1])
            )
            noise += squares / (count - 1) / (table.shape[1] - 1) / table.shape[1] / len(tasks) ** 2
        own_part += (statistics.variance(means) - noise) / count
    found = estimate(tasks)
    assert found.documents == pytest.approx(documents_part) and found.runs == pytest.approx(max(0, own_part))
    assert found.runs > 0  # these differ


def test_runs_that_differ_by_document_noise_alone_do_not_widen():
    """The widths that suffice, where the product of two bootstraps gave 4.4 points; the old one never rejected."""
    found = simulate(Design((3, 3), documents=100), studies=300)
    assert found.median < 2.7 and found.width < 3.4
    assert 0.02 < found.rejects < 0.08 and found.covers == 1 - found.rejects
    assert simulate(Design((3, 3), documents=100, gain=2.3), studies=100).rejects > 0.6


@pytest.mark.parametrize(("runs", "spread"), [((1, 3), 1.0), ((3, 3), 0.5), ((3, 3), 2.0), ((5, 5), 1.0)])
def test_intervals_of_several_runs_hold_the_truth(runs, spread):
    found = simulate(Design(runs, spread, documents=100), studies=300)
    assert 0.90 < found.covers < 0.99 and 0.01 < found.rejects < 0.10


def test_the_interval_of_one_run_holds_for_that_seed_only():
    found = simulate(Design((1, 1), spread=2.0, documents=100), studies=200)
    assert found.covers_seed > 0.9 and found.covers < 0.8


@pytest.mark.parametrize("runs", [(1, 1), (1, 3), (3, 3), (2, 2)])
def test_an_interval_excludes_0_where_p_is_below_the_level(runs):
    for seed in range(40):
        draw = np.random.default_rng(seed)
        tasks = {
            task: [
                (draw.random((count, 30)) < 0.5 + draw.normal(0, 0.1, (count, 1)) + 0.1 * side)
                for side, count in enumerate(runs)
            ]
            for task in "ab"
        }
        for level in (0.05, 0.3):
            found = paired_interval(tasks, level)
            assert (found.low > 0 or found.high < 0) == (found.p < level)
        equal = equivalence(tasks, margin=0.2)
        if unseen(0.2, 60) < 0.05:
            assert (equal.low > -0.2 and equal.high < 0.2) == (equal.p < 0.05)
        for test in comparison(tasks)["tasks"].values():
            assert (test["low"] > 0 or test["high"] < 0) == (test["p"] < 0.05)


def test_pairing_counts():
    """Two models that differ on few documents are told apart better than two as far apart on unlike documents."""
    before = outcomes(200, 0.5, 0)
    after = before.copy()
    after[np.flatnonzero(before == 0)[:10]] = 1
    paired = paired_interval({"task": (before, after)})
    shuffled = paired_interval({"task": (before, np.random.default_rng(1).permutation(after))})
    assert paired.difference == pytest.approx(shuffled.difference) == pytest.approx(0.05)
    assert paired.p < 0.01 < 0.2 < shuffled.p
    assert paired.high - paired.low < (shuffled.high - shuffled.low) / 2


def test_runs_that_differ_widen_the_interval():
    before = np.zeros((1, 400))
    alike = np.concatenate([np.ones((3, 200)), np.zeros((3, 200))], axis=1)
    unlike = alike.copy()
    unlike[0], unlike[2] = 0, 1  # runs of 0, 0.5 and 1: the same mean
    few, wide = (paired_interval({"t": (before, after)}) for after in (alike, unlike))
    assert few.difference == pytest.approx(wide.difference) == pytest.approx(0.5)
    assert wide.high - wide.low > 5 * (few.high - few.low)


def test_the_spread_of_the_mean_of_runs():
    """Where documents do not differ, runs are all there is: the t interval of their mean."""
    values = [0.2, 0.3, 0.7, 0.4]
    after = np.repeat(np.array(values)[:, None], 50, axis=1)
    found = paired_interval({"t": (np.zeros(50), after)})
    interval, p = plain_t(values)
    assert (found.low, found.high, found.p) == pytest.approx((interval.low, interval.high, p))


def test_a_single_document_is_no_certainty():
    found = paired_interval({"t": (np.zeros(1), np.ones(1))})
    assert found.p > 0.3 and found.low < 0 < 1 < found.high


def test_equals_do_not_differ():
    same = outcomes(30, 0.5, 0)
    assert paired_interval({"t": (same, same)}).p == 1
    assert paired_interval({"t": (same, same)}).low == paired_interval({"t": (same, same)}).high == 0


def test_equivalence_needs_evidence():
    before = outcomes(2000, 0.5, 0)
    after = before.copy()
    after[:8] = 1 - after[:8]
    close = equivalence({"t": (before, after)}, margin=0.01)
    assert close.p < 0.05 and -0.01 < close.low <= close.high < 0.01
    few = equivalence({"t": (before[:60], outcomes(60, 0.5, 7))}, margin=0.01)
    assert few.p > 0.05 and (few.low < -0.01 or few.high > 0.01)
    # The margin's two sides are one-sided tests at 5 %, so its interval is the 90 % one.
    drawn = paired_interval({"t": (before, after)}, level=0.1)
    assert (close.low, close.high) == (drawn.low, drawn.high)
    # Documents on which nothing differs are evidence by their number alone.
    alike = [equivalence({"t": (before[:count], before[:count])}, margin=0.01).p for count in (8, 250, 350)]
    assert alike == pytest.approx([0.99**8, 0.99**250, 0.99**350], rel=1e-6)
    beyond = equivalence({"t": (np.zeros(50), np.ones(50))}, margin=0.5)  # better by far, so surely not worse
    assert beyond.p == beyond.not_better == pytest.approx(1) and beyond.not_worse < 0.001


def test_a_comparison_of_single_runs():
    before = {"a": outcomes(200, 0.5, 0), "b": outcomes(100, 0.5, 1)}
    after = {task: right.copy() for task, right in before.items()}
    after["a"][np.flatnonzero(before["a"] == 0)[:14]] = 1
    after["a"][np.flatnonzero(before["a"] == 1)[:2]] = 0
    found = comparison({task: (before[task], after[task]) for task in before})
    assert found["runs"] == [1, 1] and found["graded"] is None
    assert found["mean"]["difference"] == pytest.approx((0.06 + 0) / 2) and found["mean"]["documents"] == 300
    a, b = found["tasks"]["a"], found["tasks"]["b"]
    assert (a["gained"], a["lost"], a["test"]) == (14, 2, "mcnemar")
    assert a["p"] == mcnemar(before["a"], after["a"]) < 0.05 < a["p"] * 20 and a["documents_to_decide"] is None
    assert (b["gained"], b["lost"], b["difference"], b["p"], b["documents_to_decide"]) == (0, 0, 0, 1, None)


def test_mcnemar_is_not_contradicted_by_its_interval():
    before, after = np.zeros(100), np.zeros(100)
    after[:5] = 1  # five of five: z = 2.2, but McNemar's p is 0.06
    test = comparison({"t": (before, after)})["tasks"]["t"]
    assert test["p"] == pytest.approx(0.0625) and test["low"] == 0 < test["high"]


def test_a_comparison_of_several_runs():
    before, after = outcomes((1, 50), 0.5, 0), outcomes((3, 50), 0.6, 1)
    probability = (np.random.default_rng(2).random((1, 50)), np.random.default_rng(3).random((3, 50)))
    found = comparison({"t": (before, after)}, {"t": probability})
    pairs = [(before[0], run) for run in after]
    assert found["runs"] == [1, 3] and found["tasks"]["t"]["test"] == "t_test"
    assert found["tasks"]["t"]["gained"] == pytest.approx(
        np.mean([((one == 0) & (two == 1)).sum() for one, two in pairs])
    )
    assert found["tasks"]["t"]["lost"] == pytest.approx(
        np.mean([((one == 1) & (two == 0)).sum() for one, two in pairs])
    )
    graded = found["graded"]
    assert graded["mean"]["difference"] == pytest.approx(probability[1].mean() - probability[0].mean())
    assert graded["tasks"]["t"]["gained"] is None and graded["tasks"]["t"]["lost"] is None


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
        estimate(tasks)
