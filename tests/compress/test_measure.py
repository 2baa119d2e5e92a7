"""The figures of known weights, and claims that the weights do not bear out."""

import copy

import pytest
import torch

from idp.compress.measure import check_claims, distinct_values, measure_layer, measure_weights, pattern_share
from idp.compress.sizes import effective_bits, in_bytes, mask_bits
from idp.errors import UserError

WEIGHT = torch.tensor([[0.0, 1.0, 2.0, 0.0], [0.0, 3.0, 3.0, 3.0]])


def test_one_layer():
    assert distinct_values(WEIGHT, 4) == 3 and distinct_values(WEIGHT, 2) == 2
    row = measure_layer(WEIGHT, bits=4, group_size=2, symmetric=False)
    assert row["zeros"] == 3 and row["sparsity"] == 3 / 8 and row["shape"] == [2, 4]
    assert row["bits_per_weight"] == 4 + (16 + 4) / 2
    assert row["patterns"] == {"2:4": 0.5}  # 4:8 does not fit in four columns
    assert measure_layer(WEIGHT, bits=4, group_size=-1, symmetric=True)["bits_per_weight"] == 4 + 16 / 4
    assert pattern_share(WEIGHT, "1:2") == 0.75 and pattern_share(WEIGHT, "3:4") == 1.0


def test_a_whole_model():
    whole = measure_weights(
        [("a", WEIGHT), ("b", torch.ones(2, 4))], bits=None, group_size=None, symmetric=False, pattern="3:4"
    )
    assert whole["sparsity"] == 3 / 16 and whole["bits_per_weight"] == 16
    for dtype_bits in (16, 32):
        sizes = in_bytes({"parameters": 26, **whole}, dtype_bits=dtype_bits, bits=None, symmetric=True, pattern="3:4")
        assert sizes["packed_bytes"] == 26 * dtype_bits / 8
        inside = (8 * (1 + 5 / 8 * dtype_bits) + 8 * dtype_bits) / 8
        assert sizes["effective_bytes"] == round(inside) + 10 * dtype_bits / 8
    assert whole["worst"]["sparsity"] == {"layer": "b", "value": 0.0}
    assert whole["patterns"] == {"2:4": 0.25, "3:4": 0.5}


def test_effective_bits():
    assert mask_bits(None) == 1 and mask_bits("2:4") == 1 and mask_bits("1:4") == 0.5 and mask_bits("4:8") == 1
    assert effective_bits(0.5, 16.0, None, None) == 1 + 8
    assert effective_bits(0.5, 4.3125, 4, "2:4") == pytest.approx(1 + 2 + 0.3125)
    assert effective_bits(0.75, 4.3125, 4, "1:4") == pytest.approx(0.5 + 1 + 0.3125)
    assert effective_bits(0.1, 4.3125, 4, None) == 4.3125  # a mask would cost more than the zeros


@pytest.mark.parametrize(
    ("overrides", "break_it", "message"),
    [
        (["compressor=wanda50"], {"sparsity": 0.4999}, "b is 49.99% zeros, less than the 50.00% that were asked"),
        (["compressor=wanda_2of4"], {"patterns": {"2:4": 0.999}}, "b breaks the pattern 2:4"),
        (["compressor=gptq3"], {"distinct_values": 9}, "b holds 9 distinct values in a group, more than 3 bits can"),
    ],
)
def test_a_claim_that_the_weights_do_not_show_fails_the_run(overrides, break_it, message, compose):
    claims = compose(*overrides).compressor.claims(64)
    right = {"sparsity": 0.5, "patterns": {"2:4": 1.0}, "distinct_values": 8}
    measured = {"layers": {"a": right, "b": copy.deepcopy(right)}}
    check_claims(claims, measured)
    measured["layers"]["b"] |= break_it
    with pytest.raises(UserError, match=message):
        check_claims(claims, measured)
