"""LLM-KICK's verdict and ours, and closed against open book, on outcomes made to be known."""

import numpy as np
import pytest

from idp.stats.matching import AT_CHANCE, DOES_NOT_MATCH, MATCHES, UNDECIDED, matching, ratio_interval
from idp.stats.open_book import open_book


def outcomes(right: int, of: int) -> np.ndarray:
    return np.arange(of) < right


def flipped(before: np.ndarray, lost: int, gained: int = 0) -> np.ndarray:
    after = before.copy()
    after[np.flatnonzero(before)[:lost]] = False
    after[np.flatnonzero(~before)[:gained]] = True
    return after


def drawn(generator: np.random.Generator, of: int, knows: float, loses: float) -> tuple[np.ndarray, np.ndarray]:
    before = generator.random(of) < knows
    return before, before & (generator.random(of) >= loses)


@pytest.mark.parametrize(
    ("lost", "of", "by_the_point", "with_its_interval"),
    [
        (10, 2000, MATCHES, MATCHES),  # 99 % kept of 1,000 right answers
        (300, 2000, DOES_NOT_MATCH, DOES_NOT_MATCH),  # 70 %
        (45, 2000, MATCHES, UNDECIDED),  # 95.5 %, and the interval holds 95 %
        (55, 2000, DOES_NOT_MATCH, UNDECIDED),
        (0, 20, MATCHES, UNDECIDED),  # nothing differs, but twenty documents rule out nothing
        (0, 2000, MATCHES, MATCHES),
    ],
)
def test_the_verdict_of_the_scores_and_that_of_their_interval(lost, of, by_the_point, with_its_interval):
    dense = outcomes(of // 2, of)
    found = matching({"task": (dense, flipped(dense, lost))})
    assert found["ratio"] == pytest.approx(1 - lost / (of // 2))
    assert (found["verdict"], found["ours"]) == (by_the_point, with_its_interval)


def test_exactly_95_percent_matches_and_better_than_dense_does_too():
    dense = outcomes(1000, 2000)
    assert matching({"task": (dense, flipped(dense, 50))})["verdict"] == MATCHES
    better = matching({"task": (dense, flipped(dense, 0, gained=200))})
    assert better["ratio"] == pytest.approx(1.2) and (better["verdict"], better["ours"]) == (MATCHES, MATCHES)


def test_tasks_weigh_the_same_in_the_ratio():
    small, large = outcomes(10, 10), outcomes(500, 1000)
    found = matching({"small": (small, flipped(small, 5)), "large": (large, large)})
    assert found["ratio"] == pytest.approx((0.5 + 0.5) / (1.0 + 0.5))


def test_who_guesses_has_nothing_to_lose():
    guessed = outcomes(52, 200)
    found = matching({"task": (guessed, flipped(guessed, 1))}, {"task": 0.25})
    assert (found["verdict"], found["ours"]) == (MATCHES, AT_CHANCE)
    written = outcomes(1, 50)  # one right answer that nothing was there to guess from
    assert matching({"task": (written, flipped(written, 1))})["ours"] == UNDECIDED
    nothing = matching({"task": (outcomes(0, 50), outcomes(0, 50))})
    assert nothing == {"verdict": None, "ratio": None, "interval": None, "ours": AT_CHANCE}


def test_the_ratios_interval_is_that_of_a_paired_bootstrap():
    generator = np.random.default_rng(0)
    tasks = {name: drawn(generator, of, 0.6, 0.15) for name, of in (("one", 150), ("two", 400))}
    means = np.zeros((4000, 2))
    for before, after in tasks.values():
        rows = generator.integers(len(before), size=(4000, len(before)))
        means += np.stack([before[rows].mean(1), after[rows].mean(1)], axis=1) / len(tasks)
    expected = np.quantile(means[:, 1] / means[:, 0], [0.025, 0.975])
    ratio = np.mean([after.mean() for _, after in tasks.values()]) / np.mean([b.mean() for b, _ in tasks.values()])
    assert ratio_interval(tasks, ratio) == pytest.approx(expected, abs=0.006)
    few = outcomes(1, 50)
    assert ratio_interval({"task": (few, few[::-1])}, 1.0) is None  # dense cannot be told from 0: no bounds


def test_knowledge_is_lost_where_the_closed_book_keeps_a_smaller_share_though_it_loses_fewer_points():
    generator = np.random.default_rng(1)
    closed, with_passage = drawn(generator, 4000, 0.1, 0.5), drawn(generator, 4000, 0.7, 0.1)
    found = open_book(closed, with_passage)
    assert found["worse"] == "knowledge"
    assert found["difference"]["difference"] < 0 and found["kept_difference"]["low"] > 0
    assert found["closed"]["kept"] == pytest.approx(closed[1].mean() / closed[0].mean())
    changes = [after.mean() - before.mean() for before, after in (closed, with_passage)]
    assert found["difference"]["difference"] == pytest.approx(changes[1] - changes[0])
    assert open_book(with_passage, closed)["worse"] == "reading"


def test_equal_shares_leave_open_which_is_lost_and_no_knowledge_says_nothing():
    generator = np.random.default_rng(2)
    found = open_book(drawn(generator, 300, 0.3, 0.2), drawn(generator, 300, 0.7, 0.2))
    assert found["worse"] == "undecided" and found["kept_difference"]["low"] < 0 < found["kept_difference"]["high"]
    nothing = np.zeros(300, dtype=bool)
    found = open_book((nothing, nothing), drawn(generator, 300, 0.7, 0.2))
    assert found["closed"]["kept"] is None and found["kept_difference"] is None and found["worse"] == "undecided"
