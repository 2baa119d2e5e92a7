"""How many bytes a compressed model takes: packed as an export writes it, and in effect, with its zeros left out.

Both are computed from measured figures and from the dtype that the model is measured in, in which everything that is
not packed is written. *Packed* is to the byte what the tensors of an export take: codes in whole words of 32 bits, a
scale in the model's dtype for each group, zero points packed like codes, each layer's shape (`weight_shape`, 16 bytes).
*Effective* also leaves out the zeros, for which there is no file format in wide use (packed integers of sparse weights
were dropped from compressed-tensors): it is an estimate of what a sparse kernel or file would need, and is labelled as
one.

Records without `dense_bits` are older: they count everything that is not packed, and scales, at 16 bits whatever the
dtype, and neither shapes nor what fills up a word.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from idp.config import Claims, n_of_m

if TYPE_CHECKING:
    from idp.store import Product

# `bits_per_weight` counts scales and dense weights at 16 bits, as the literature does, so that it does not depend on
# the dtype of a run.
SCALE_BITS = 16
DTYPE_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}
WORD, SHAPE_BYTES = 32, 16


def recorded(product: Product, dtype: str) -> dict[str, Any]:
    """What a record says of a compress product: the totals of its `weights.json`, and bytes.

    Args:
        product: of the compress stage.
        dtype: the dtype that the model is measured in, such as `bfloat16`.
    """
    weights, config = product.read("weights.json"), product.manifest["config"]
    if "external" not in config:  # whose size is that of its own files
        claims, stored = claims_of(config), weights.get("stored")
        weights |= in_bytes(
            weights,
            dtype_bits=DTYPE_BITS[dtype],
            bits=claims.bits if stored is None or any(stored.values()) else None,  # a grid that nobody gave
            symmetric=claims.symmetric,
            pattern=claims.pattern,
        )
    return {key: value for key, value in weights.items() if key != "layers"}


def claims_of(config: dict[str, Any]) -> Claims:
    """What the key of a compress product says of its weights, whatever kind of compressor made them."""
    if "claims" in config:
        return Claims(**config["claims"])
    sparsity, quantization = config.get("sparsity") or {}, config.get("quantization") or {}
    return Claims(
        sparsity.get("level", 0.0),
        sparsity.get("pattern"),
        quantization.get("bits"),
        quantization.get("group_size"),
        quantization.get("symmetric", True),
        quantization.get("actorder"),
    )


def in_bytes(
    weights: dict[str, Any], *, dtype_bits: int, bits: int | None, symmetric: bool, pattern: str | None
) -> dict[str, int]:
    """`packed_bytes` and `effective_bytes` of a model, and `dense_bits`, the bits of a weight that is not packed.

    Args:
        weights: `parameters` of the whole model, `group_size`, and of each of its `layers` the `shape` and `sparsity`.
        dtype_bits: of a dense weight and of a scale.
        bits: of a packed weight; None where none is packed.
        symmetric: whether there are no zero points.
        pattern: N:M, or None.
    """
    packed, effective, inside = 0, 0.0, 0
    for row in weights["layers"].values():
        rows, columns = row["shape"]
        count = rows * columns
        whole = layer_bytes(rows, columns, dtype_bits, bits, weights["group_size"], symmetric)
        inside += count
        packed += whole
        effective += effective_bits(row["sparsity"], whole * 8 / count, bits or dtype_bits, pattern) * count / 8
    rest = (weights["parameters"] - inside) * dtype_bits // 8
    return {"packed_bytes": packed + rest, "effective_bytes": round(effective) + rest, "dense_bits": dtype_bits}


def layer_bytes(
    rows: int, columns: int, dtype_bits: int, bits: int | None, group_size: int | None, symmetric: bool
) -> int:
    """Bytes of one layer's tensors as `idp.compress.pack` writes them; dense where `bits` is None."""
    if bits is None:
        return rows * columns * dtype_bits // 8
    groups = 1 if group_size in (-1, None) else columns // group_size
    words = rows * math.ceil(columns * bits / WORD)
    if not symmetric:
        words += math.ceil(rows * bits / WORD) * groups
    return words * WORD // 8 + rows * groups * dtype_bits // 8 + SHAPE_BYTES


def effective_bits(sparsity: float, bits_per_weight: float, bits: float | None, pattern: str | None) -> float:
    """Bits per weight with the zeros left out: kept values, their places, scales and zero points.

    `mask + (1 - sparsity) * value + overhead`, or the packed bits where that is less: `value` is the bits of a kept
    weight, `overhead` the scales' and zero points' share.

    Args:
        sparsity: share of zeros.
        bits_per_weight: packed, with scales and zero points.
        bits: of a kept weight; None for 16.
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
