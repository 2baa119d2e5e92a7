"""The share of the damage that is brought back: Fieller's interval, and none where there is no damage beyond noise."""

import numpy as np
import pytest

from idp.stats.damage import beyond_noise, brought_back
from idp.stats.significance import comparison


def three(broken, restored, newly=0, documents=400):
    """Dense all right; compression breaks some, of which a repair restores some, and breaks others anew."""
    dense, compressed = np.ones(documents), np.ones(documents)
    compressed[:broken] = 0
    repaired = compressed.copy()
    repaired[:restored] = 1
    repaired[documents - newly : documents] = 0
    return dense, compressed, repaired


def test_the_share_and_the_ends_of_its_interval():
    rows = three(broken=80, restored=40, newly=10)
    found = brought_back({"task": rows})
    assert found.share == pytest.approx((40 - 10) / 80)
    # The ends are the shares r at which gain - r x damage is just significant: a plain t-test says so.
    dense, compressed, repaired = rows
    for end in (found.low, found.high):
        each = (repaired - compressed) - end * (dense - compressed)
        t = each.mean() / (each.std(ddof=1) / len(each) ** 0.5)
        assert abs(t) == pytest.approx(1.966, abs=0.002)
    assert found.low < found.share < found.high


def test_tasks_weigh_the_same():
    found = brought_back({"many": three(400, 100, documents=800), "few": three(40, 40, documents=80)})
    assert found.share == pytest.approx((0.125 + 0.5) / (0.5 + 0.5))


@pytest.mark.parametrize(
    "rows",
    [
        three(broken=0, restored=0, newly=20),  # no damage
        three(broken=3, restored=3),  # damage within noise: p = 0.08
        tuple(side[::-1] for side in (np.zeros(50), np.ones(50), np.ones(50))),  # compression gained
        (np.ones(1), np.zeros(1), np.ones(1)),  # a single document
    ],
)
def test_no_share_of_no_damage(rows):
    assert brought_back({"task": rows}) is None


def test_it_is_told_where_and_only_where_the_test_says_damage():
    """On the border of significance, too: the interval is then bounded exactly where p is below 0.05."""
    for broken in range(1, 12):
        for gained in range(4):
            dense, compressed, repaired = three(broken, 1, documents=200)
            dense[-gained - 1 : -1] = 0  # right in compressed alone
            damage = comparison({"task": (dense, compressed)})["mean"]
            said = damage["p"] < 0.05 and damage["difference"] < 0
            assert (brought_back({"task": (dense, compressed, repaired)}) is not None) == said, (broken, gained)


def test_its_interval_holds_the_truth():
    draw, inside, studies = np.random.default_rng(0), 0, 400
    for _ in range(studies):
        tasks = {}
        for name in "abc":
            dense = (draw.random(300) < 0.6).astype(float)
            broken, restored = draw.random(300) < 0.25, draw.random(300) < 0.4
            lucky = draw.random(300) < 0.05
            compressed = np.where((dense == 1) & broken, 0, np.where((dense == 0) & lucky, 1, dense))
            repaired = np.where((dense == 1) & broken & restored, 1, compressed)
            tasks[name] = dense, compressed, repaired
        truth = 0.6 * 0.25 * 0.4 / (0.6 * 0.25 - 0.4 * 0.05)
        found = brought_back(tasks)
        inside += found.low <= truth <= found.high
    assert 0.92 <= inside / studies <= 0.98


def test_tasks_that_are_read_together_are_adjusted_together():
    assert beyond_noise([0.1, 0.1, -0.2], [0.001, 0.03, 0.0001]) == [True, True, False]
    assert beyond_noise([0.1, 0.1, 0.1], [0.001, 0.03, 0.04]) == [True, False, False]
    assert beyond_noise([], []) == []
