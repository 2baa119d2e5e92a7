"""How many bytes a compressed model takes: packed as it is written, and in effect, with its zeros left out.

Both are computed from measured figures. *Packed* is what a checkpoint with packed integers takes: `bits` per weight, a
scale of 16 bits and a zero point of `bits` bits for each group, everything else at 16 bits. *Effective* also leaves out
the zeros, for which there is no file format in wide use (packed integers of sparse weights were dropped from
compressed-tensors): it is an estimate of what a sparse kernel or file would need, and is labelled as one.
"""

from __future__ import annotations

import math

from idp.config import n_of_m

SCALE_BITS = 16  # scales and dense weights are counted at 16 bits, as they are stored in practice


def effective_bits(sparsity: float, bits_per_weight: float, bits: int | None, pattern: str | None) -> float:
    """Bits per weight with the zeros left out: kept values, their places, scales and zero points.

    `mask + (1 - sparsity) * value + overhead`, or the packed bits where that is less: `value` is the bits of a kept
    weight, `overhead` the scales' and zero points' share.

    Args:
        sparsity: share of zeros.
        bits_per_weight: packed, with scales and zero points.
        bits: of a quantised weight; None for 16.
        pattern: N:M, or None.
    """
    value = SCALE_BITS if bits is None else bits
    overhead = bits_per_weight - value
    return min(bits_per_weight, mask_bits(pattern) + (1 - sparsity) * value + overhead)


def mask_bits(pattern: str | None) -> float:
    """Bits per weight that say which weights are kept.

    A bit for every weight; or, for N:M, the place of each kept weight among its M where that is less: two bits for
    each of the two in 2:4 (as NVIDIA's sparse tensor cores store it), which is one bit per weight as well.
    """
    if pattern is None:
        return 1.0
    keep, of = n_of_m(pattern)
    return min(1.0, keep * math.ceil(math.log2(of)) / of)
