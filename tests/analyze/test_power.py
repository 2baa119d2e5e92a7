"""What a comparison could have found, against figures worked out by hand and against studies of just that size."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from idp.stats.power import MCNEMAR_FLIPS, detectable, documents_to_decide, power
from idp.stats.significance import comparison
from idp.stats.variance import estimate
from tests.analyze.simulations import Design, simulate


def flipped(documents, flips, gained=0.5):
    """Before and after of one task: a share of documents flips, and of those a share from wrong to right."""
    before, after = np.zeros(documents), np.zeros(documents)
    count = round(flips * documents)
    up = round(gained * count)
    after[:up], before[up:count] = 1, 1
    return before, after


@pytest.mark.parametrize(
    ("documents", "points"),
    [(100, 2.8), (500, 1.3), (2000, 0.63)],
)
def test_nine_tasks_of_models_that_disagree_on_nine_in_a_hundred(documents, points):
    found = comparison({str(task): flipped(documents, 0.09) for task in range(9)})["mean"]
    by_hand = (norm.ppf(0.975) + norm.ppf(0.8)) * (0.09 / 9 / documents) ** 0.5
    assert found["detectable"] == pytest.approx(by_hand, rel=0.03)
    assert 100 * found["detectable"] == pytest.approx(points, abs=0.08)


def test_as_many_documents_as_decide_detect_the_difference():
    tasks = {str(task): flipped(100, 0.2, gained=0.55) for task in range(9)}
    found = comparison(tasks)["mean"]
    by_hand = (norm.ppf(0.975) + norm.ppf(0.8)) ** 2 * (0.2 - 0.02**2) / 9 / 0.02**2
    assert found["p"] > 0.05 and found["documents_to_decide"] == pytest.approx(by_hand, rel=0.02)
    at_that_size = found["detectable"] * (100 / found["documents_to_decide"]) ** 0.5
    assert at_that_size == pytest.approx(found["difference"], rel=0.02)
    more = comparison({task: tuple(np.tile(side, 5) for side in pair) for task, pair in tasks.items()})["mean"]
    assert more["documents"] == 9 * 500 and more["p"] < 0.05 and more["documents_to_decide"] is None  # decided


def test_no_number_of_documents_decides_where_runs_differ_more():
    draw = np.random.default_rng(0)
    after = (draw.random((3, 200)) < np.array([0.4, 0.55, 0.62])[:, None]).astype(float)
    found = comparison({"t": ((draw.random(200) < 0.5).astype(float), after)})["mean"]
    assert found["p"] > 0.05 and found["documents_to_decide"] is None and found["detectable"] > 0.2
    same = np.ones((1, 30))
    none = comparison({"t": (same, same)})["mean"]
    assert none["detectable"] is None and none["documents_to_decide"] is None


@pytest.mark.parametrize(("documents", "flips"), [(100, 0.02), (100, 0.1), (400, 0.1), (1000, 0.05)])
def test_mcnemar_detects_what_is_said(documents, flips):
    """Its exact power: over all numbers of flips, and of those that go up."""
    found = comparison({"t": flipped(documents, flips)})["tasks"]["t"]
    true = found["detectable"]
    share = max(flips, true)
    total = 0.0
    for count in range(documents + 1):
        if (chance := binom.pmf(count, documents, share)) > 1e-9:
            few = int(binom.ppf(0.025, count, 0.5)) - 1 if count else -1
            while few + 1 <= count / 2 and 2 * binom.cdf(few + 1, count, 0.5) < 0.05:
                few += 1
            up = (1 + true / share) / 2
            total += chance * (binom.cdf(few, count, up) + binom.sf(count - few - 1, count, up)) * (few >= 0)
    assert 0.75 < total < 0.96  # where nearly all flips go one way, they vary less than was observed


@pytest.mark.parametrize(("runs", "spread"), [((1, 1), 0.0), ((1, 3), 0.0), ((3, 3), 0.0)])
def test_a_gain_as_large_as_detectable_is_found_in_eighty_percent(runs, spread):
    said = simulate(Design(runs, spread, documents=100), studies=100).detectable
    assert 0.7 < simulate(Design(runs, spread, documents=100, gain=said), studies=200, seed=1).rejects < 0.93


def test_power_is_that_of_the_t_test():
    found = estimate({str(task): flipped(200, 0.1) for task in range(9)})
    error = found.documents**0.5
    assert power(found, 0.0) == pytest.approx(0.025, abs=1e-3)
    assert power(found, 3 * error) == pytest.approx(norm.cdf(3 - 1.96), abs=0.01)
    least = detectable(found)
    assert power(found, least) == pytest.approx(0.8, abs=1e-3)
    assert detectable(found, level=0.005) > 1.2 * least
    assert documents_to_decide(found) is None  # there is no difference
    assert detectable(estimate({"t": flipped(50, 0.0)}), mcnemar=50) == MCNEMAR_FLIPS / 50
