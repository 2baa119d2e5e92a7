"""What a compressed model's weights really are, read from the weights that are evaluated, never from the config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idp.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

SCALE_BITS = 16  # scales and dense weights are counted at 16 bits, as they are stored in practice


def measure_weights(
    layers: dict[str, nn.Linear], others: int, *, bits: int | None, group_size: int | None, symmetric: bool
) -> dict[str, Any]:
    """Sparsity, distinct values, bits and bytes, in total and per layer.

    Args:
        layers: the compressed layers.
        others: number of parameters outside them (embeddings, norms, head).
        bits: bits per quantised weight; None where the weights are not quantised.
        group_size: weights that share a scale; -1 a whole row; None where not quantised.
        symmetric: whether the grid has no zero points.

    Returns:
        `sparsity` (share of exact zeros), `bits_per_weight` (scales and zero points included), `packed_bytes` (the
        whole model: quantised layers packed, the rest at 16 bits), `effective_bytes` (computed, not stored: as packed,
        or as nonzero values plus a one-bit mask where that is smaller), and `layers` with each layer's figures.

    Raises:
        UserError: a layer holds more distinct values per group than its bits allow.
    """
    rows, zeros, total, packed, effective = {}, 0, 0, 0.0, 0.0
    for name, layer in layers.items():
        row = measure_layer(layer.weight.data, bits=bits, group_size=group_size, symmetric=symmetric)
        if bits is not None and row["distinct_values"] > 2**bits:
            raise UserError(
                f"compress: {name} holds {row['distinct_values']} distinct values in a group, more than {bits} bits"
                " can; this is a fault of the compressor, not of your config"
            )
        rows[name] = row
        count = layer.weight.numel()
        zeros += row["zeros"]
        total += count
        packed += row["bits_per_weight"] * count / 8
        value_bits = row["bits_per_weight"]
        effective += min(value_bits, 1 + (1 - row["sparsity"]) * value_bits) * count / 8
    rest = others * SCALE_BITS / 8
    return {
        "sparsity": zeros / total,
        "bits_per_weight": packed * 8 / total,
        "packed_bytes": round(packed + rest),
        "effective_bytes": round(effective + rest),
        "compressed_weights": total,
        "group_size": group_size,
        "layers": rows,
    }


def measure_layer(weight: torch.Tensor, *, bits: int | None, group_size: int | None, symmetric: bool) -> dict[str, Any]:
    """One layer's figures; `weight` is [rows, columns]."""
    zeros = int((weight == 0).sum())
    row = {"zeros": zeros, "sparsity": zeros / weight.numel()}
    if bits is None:
        return {**row, "bits_per_weight": float(SCALE_BITS)}
    columns = weight.shape[1] if group_size in (-1, None) else group_size
    overhead = (SCALE_BITS + (0 if symmetric else bits)) / columns
    return {**row, "distinct_values": distinct_values(weight, columns), "bits_per_weight": bits + overhead}


def distinct_values(weight: torch.Tensor, group: int) -> int:
    """The largest number of distinct values that any group of `group` consecutive weights of a row holds."""
    ordered = weight.reshape(-1, group).sort(dim=1).values
    return int((ordered[:, 1:] != ordered[:, :-1]).sum(dim=1).max()) + 1
