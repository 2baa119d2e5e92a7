"""A stage's peak is its own: what came before it is forgotten."""

import mmap
import sys

import pytest

from idp.memory import peak_bytes, start_peak


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forget a peak")
def test_the_peak_is_of_the_span():
    def touch(size: int) -> None:  # straight from the system, past an allocator that keeps what was freed
        with mmap.mmap(-1, size) as block:
            block.write(b"x" * size)

    start_peak()
    before = peak_bytes()
    touch(2**28)
    assert peak_bytes() >= before + 2**27
    start_peak()
    start = peak_bytes()
    touch(2**25)
    assert 2**24 <= peak_bytes() - start < 2**27
