"""A stage's peak is its own: what came before it is forgotten."""

import sys

import pytest

from idp.memory import peak_bytes, start_peak


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forget a peak")
def test_the_peak_is_of_the_span():
    import torch

    large = torch.ones(2**27)  # half a gigabyte
    assert peak_bytes() >= 2**29
    del large
    start_peak()
    before = peak_bytes()
    small = torch.ones(2**24)
    assert 2**25 <= peak_bytes() - before < 2**29
    del small
