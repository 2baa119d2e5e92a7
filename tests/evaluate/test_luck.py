"""What an oracle owes to luck: equal prompts of several makes leave nothing beyond it, specialists do."""

import numpy as np
import pytest

from idp.stats.luck import lead_of_equals, luck

TASKS, STUDIES = 4, 50


def tosses(draw, documents, m):
    """A fifth of the documents are tosses of a coin, of the others most are right whatever the prompt."""
    tossed = draw.random(documents) < 0.2
    return np.where(tossed[:, None], draw.random((documents, m)) < 0.5, (draw.random(documents) < 0.7)[:, None])


def noisy(draw, documents, m):
    """Each prompt moves a document's score by noise of its own, and some prompts are better than others."""
    of_documents = draw.uniform(-1, 1) + draw.normal(0, 1, documents)[:, None]
    return of_documents + np.linspace(0, 0.3, m) + draw.normal(0, 0.3, (documents, m)) > 0


def beta(draw, documents, m):
    return draw.random((documents, m)) < draw.beta(0.5, 0.2, documents)[:, None]


def unrelated(draw, documents, m):
    """All documents are as hard: no prompt knows which ones another has right."""
    return draw.random((documents, m)) < 0.4


def graded(draw, documents, m):
    return draw.normal(0, 1, documents)[:, None] + draw.normal(0, 0.3, (documents, m))


def specialists(draw, documents, m, share=0.4, own=0.9, others=0.2):
    """Of some documents each is of a kind that one prompt is good at."""
    kind = draw.integers(m, size=documents)
    chance = np.where(np.arange(m) == kind[:, None], own, others)
    shared = (draw.random(documents) < 0.6)[:, None]
    return np.where((draw.random(documents) < share)[:, None], draw.random((documents, m)) < chance, shared)


def excess(make, documents, m, draw):
    found = luck([np.asarray(make(draw, documents, m), float) for _ in range(TASKS)])
    mean = np.mean([each.lead - each.expected for each in found])
    assert mean == pytest.approx(np.mean([each.beyond.mean() for each in found]), abs=1e-6)
    return mean, sum(each.beyond.var() / documents for each in found) ** 0.5 / TASKS


@pytest.mark.parametrize("m", [3, 4, 8])
@pytest.mark.parametrize("make", [tosses, noisy, beta, unrelated, graded])
def test_equal_prompts_leave_nothing_beyond_luck(make, m):
    draw = np.random.default_rng(0)
    found = [excess(make, 200, m, draw) for _ in range(STUDIES)]
    assert abs(np.mean([mean for mean, _ in found])) < 0.004
    assert 0.86 <= np.mean([abs(mean) <= 1.96 * error for mean, error in found]) <= 1.0


@pytest.mark.parametrize("m", [3, 4, 8])
def test_specialists_leave_something(m):
    draw = np.random.default_rng(0)
    found = [excess(specialists, 200, m, draw) for _ in range(20)]
    assert all(mean > 1.96 * error for mean, error in found)


@pytest.mark.parametrize("make", [tosses, noisy, specialists])
def test_two_prompts_lead_by_half_their_flips(make):
    """Whatever they are, so long as documents differ: there is nothing that two prompts can show."""
    scores = np.asarray(make(np.random.default_rng(0), 400, 2), float)
    [found] = luck([scores])
    flips = (scores[:, 0] != scores[:, 1]).mean()
    assert found.flips == pytest.approx(flips)
    assert found.lead == pytest.approx(found.expected) == pytest.approx(flips / 2)


@pytest.mark.parametrize("m", [2, 3, 4, 8])
def test_the_lead_of_equals_against_drawing_them(m):
    draw, documents = np.random.default_rng(0), 400_000
    for make, model in ((tosses, "toss"), (beta, "spread"), (unrelated, "opposed")):
        scores = np.asarray(make(draw, documents, m), float)
        right = scores.sum(1)
        flips = (2 * right * (m - right) / (m * (m - 1))).mean()
        lead = scores.max(1).mean() - scores.mean()
        assert lead_of_equals(scores.mean(), flips, m, model) == pytest.approx(lead, abs=0.003)
    assert lead_of_equals(0.5, 0.1, m, "toss") == 2 * 0.1 * (0.5 - 0.5**m)


@pytest.mark.parametrize("scores", [np.ones((5, 3)), np.zeros((5, 3)), np.eye(3), np.ones((1, 3)), np.ones((4, 1))])
def test_nothing_to_tell_apart(scores):
    [found] = luck([scores])
    assert np.isfinite([found.lead, found.expected, *found.beyond]).all()
    if np.ptp(scores) == 0:
        assert found.lead == found.expected == 0


def test_guesses_look_like_something_to_choose():
    """The page says so: hard documents that each prompt guesses right now and then are not told from specialists'."""

    def guesses(draw, documents, m):
        guessed = (draw.random(documents) < 1 / 3)[:, None]
        return np.where(guessed, draw.random((documents, m)) < 0.25, (draw.random(documents) < 0.6)[:, None])

    mean, error = excess(guesses, 4000, 3, np.random.default_rng(0))
    assert 0.01 < mean < 0.02 and mean > 2 * error
