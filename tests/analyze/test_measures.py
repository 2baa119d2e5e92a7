"""Likeness against plain loops, and what each measure must not see."""

import math

import pytest
import torch

from idp.analyze.measures import LinearCKA, attention_likeness, hidden_cosine, unbiased_hsic


def attention(heads=2, tokens=6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(heads, tokens, tokens, generator=draw)
    return scores.masked_fill(~torch.ones(tokens, tokens, dtype=torch.bool).tril(), -torch.inf).softmax(-1)


def plain(dense, other, beyond):
    """Row by row, from the definitions."""
    cosines, divergences = [], []
    for p_rows, q_rows in zip(dense.tolist(), other.tolist(), strict=True):
        for query in range(beyond + 1, len(p_rows)):
            p, q = p_rows[query][beyond:], q_rows[query][beyond:]
            p, q = [value / sum(p) for value in p], [value / sum(q) for value in q]
            dot = sum(a * b for a, b in zip(p, q, strict=True))
            cosines.append(dot / math.hypot(*p) / math.hypot(*q))
            middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]

            def divergence(one, middle=middle):
                return sum(a * math.log2(a / m) for a, m in zip(one, middle, strict=True) if a > 0)

            divergences.append((divergence(p) + divergence(q)) / 2)
    return sum(cosines) / len(cosines), sum(divergences) / len(divergences)


@pytest.mark.parametrize("beyond", [0, 1])
def test_attention_is_compared_row_by_row(beyond):
    dense, other = attention(), attention(seed=1)
    found = attention_likeness(dense, other, beyond)
    cosine, divergence = plain(dense, other, beyond)
    assert found["cosine"] == pytest.approx(cosine, abs=1e-6)
    assert found["jensen_shannon"] == pytest.approx(divergence, abs=1e-6)


def test_equal_attention_and_attention_with_nothing_in_common():
    dense = attention()
    equal = attention_likeness(dense, dense)
    assert equal == {"cosine": pytest.approx(1), "jensen_shannon": pytest.approx(0, abs=1e-9)}
    first, last = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    first[..., 0] = 1  # every query on the first token
    last[0, range(4), range(4)] = 1  # every query on itself
    assert attention_likeness(first, last) == {"cosine": 0.0, "jensen_shannon": pytest.approx(1)}


def test_a_prompt_that_takes_attention_evenly_changes_nothing():
    """Dropping its columns and bringing the rest to a sum of 1 gives what the model would do without it."""
    dense = attention()
    taken = torch.rand(2, 6, 1, generator=torch.Generator().manual_seed(3)) * 0.9
    found = attention_likeness(dense, dense * (1 - taken))
    assert found == {"cosine": pytest.approx(1), "jensen_shannon": pytest.approx(0, abs=1e-6)}
    nothing_left = dense.clone()
    nothing_left[:, 3] = 0  # all on the prompt: no row to compare
    assert attention_likeness(dense, nothing_left)["cosine"] == pytest.approx(1)


def test_a_sink_on_the_first_token_hides_differences_that_are_seen_beyond_it():
    dense, other = (rows * 0.02 for rows in (attention(), attention(seed=1)))
    for rows in (dense, other):
        rows[..., 0] += 0.98
    whole, beyond = attention_likeness(dense, other), attention_likeness(dense, other, beyond=1)
    assert whole["cosine"] > 0.99 > beyond["cosine"]


def test_hidden_vectors():
    draw = torch.Generator().manual_seed(0)
    dense, other = torch.randn(5, 3, generator=draw), torch.randn(5, 3, generator=draw)
    other[0] *= 1000  # the first token does not count
    by_token = [
        sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)
        for x, y in zip(dense.tolist()[1:], other.tolist()[1:], strict=True)
    ]
    assert hidden_cosine(dense, other) == pytest.approx(sum(by_token) / 4, abs=1e-6)


def hsic_by_sums(first, second):
    """The unbiased estimate as means over pairs, triples and quadruples of distinct tokens."""
    n = len(first)
    places = range(n)
    pairs = [first[i][j] * second[i][j] for i in places for j in places if i != j]
    triples = [first[i][j] * second[i][k] for i in places for j in places for k in places if len({i, j, k}) == 3]
    fours = [
        first[i][j] * second[k][q]
        for i in places
        for j in places
        for k in places
        for q in places
        if len({i, j, k, q}) == 4
    ]
    return sum(pairs) / len(pairs) - 2 * sum(triples) / len(triples) + sum(fours) / len(fours)


def test_hsic_is_the_mean_over_distinct_tokens():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 3, generator=draw).double(), torch.randn(7, 4, generator=draw).double()
    kernels = [(side @ side.T).fill_diagonal_(0) for side in (x, y)]
    assert unbiased_hsic(*kernels) == pytest.approx(hsic_by_sums(*(kernel.tolist() for kernel in kernels)))


def cka(x, y, size=50):
    found = LinearCKA()
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        first = torch.full((1, x.shape[1]), 1e4)  # an input's first token, which does not count
        found.add(torch.cat([first, x[part]]), torch.cat([first[:, :1].expand(1, y.shape[1]), y[part]]))
    return found.value()


def test_alignment_sees_neither_rotation_nor_scale_nor_shift():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 8, generator=draw)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=draw))
    assert cka(x, 3 * x @ rotation + 5) == pytest.approx(1, abs=1e-6)
    assert cka(x, torch.randn(1000, 8, generator=draw)) == pytest.approx(0, abs=0.02)
    mixed = x + torch.randn(1000, 8, generator=draw)
    assert 0.3 < cka(x, mixed) < 0.8
    assert cka(x, mixed) == pytest.approx(cka(mixed, x))
    # The definition on the whole stream, of which batches are an estimate.
    whole = [(side - side.mean(0)).double() for side in (x, mixed)]
    cross, own, other = (
        torch.linalg.norm(a.T @ b) ** 2 for a, b in ((whole[1], whole[0]), (whole[0],) * 2, (whole[1],) * 2)
    )
    assert cka(x, mixed) == pytest.approx(float(cross / (own * other) ** 0.5), abs=0.02)


def test_too_little_or_nothing_that_varies():
    assert cka(torch.randn(5, 3), torch.randn(5, 3)) is None
    assert cka(torch.ones(50, 3), torch.randn(50, 3)) is None
