"""What a compressed model's weights really are, read from the weights that are evaluated, never from the config."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from idp.compress.sizes import SCALE_BITS
from idp.config import Claims, n_of_m
from idp.errors import UserError

if TYPE_CHECKING:
    import torch

PATTERNS = ("2:4", "4:8")  # always looked for; a config's own pattern as well
FAULT = "this is a fault of the compressor, not of your config"


def measure_weights(
    layers: Iterable[tuple[str, torch.Tensor]],
    *,
    bits: int | None,
    group_size: int | None,
    symmetric: bool,
    pattern: str | None = None,
) -> dict[str, Any]:
    """Sparsity, patterns, distinct values and bits, in total and per layer; `idp.compress.sizes` says the bytes.

    Args:
        layers: name and weight [rows, columns] of each compressed layer; looked at one at a time.
        bits: bits per quantised weight; None where the weights are not quantised.
        group_size: weights that share a scale; -1 a whole row; None where not quantised.
        symmetric: whether the grid has no zero points.
        pattern: the N:M that is claimed; None for none.

    Returns:
        `sparsity` (share of exact zeros), `patterns` (share of groups of M with at most N nonzero weights),
        `bits_per_weight` (scales and zero points included), `worst` (the layer that is least sparse, and so on), and
        `layers` with each one's figures.
    """
    rows: dict[str, dict[str, Any]] = {}
    zeros, total, packed = 0, 0, 0.0
    wanted = [*PATTERNS, *([pattern] if pattern and pattern not in PATTERNS else [])]
    for name, weight in layers:
        row = measure_layer(weight, bits=bits, group_size=group_size, symmetric=symmetric, patterns=wanted)
        rows[name] = row
        count = weight.numel()
        zeros += row["zeros"]
        total += count
        packed += row["bits_per_weight"] * count / 8
    return {
        "sparsity": zeros / max(total, 1),
        "bits_per_weight": packed * 8 / total if total else float(SCALE_BITS),
        "compressed_weights": total,
        "group_size": group_size,
        "patterns": {
            each: sum(row["patterns"][each] for row in rows.values()) / max(len(rows), 1)
            for each in wanted
            if all(each in row["patterns"] for row in rows.values())
        },
        "worst": worst(rows),
        "layers": rows,
    }


def measure_layer(
    weight: torch.Tensor,
    *,
    bits: int | None,
    group_size: int | None,
    symmetric: bool,
    patterns: Iterable[str] = PATTERNS,
) -> dict[str, Any]:
    """One layer's figures; `weight` is [rows, columns]."""
    zeros = int((weight == 0).sum())
    row = {
        "shape": list(weight.shape),
        "zeros": zeros,
        "sparsity": zeros / weight.numel(),
        "patterns": {each: share for each in patterns if (share := pattern_share(weight, each)) is not None},
    }
    if bits is None:
        return {**row, "bits_per_weight": float(SCALE_BITS)}
    columns = weight.shape[1] if group_size in (-1, None) else group_size
    overhead = (SCALE_BITS + (0 if symmetric else bits)) / columns
    return {**row, "distinct_values": distinct_values(weight, columns), "bits_per_weight": bits + overhead}


def pattern_share(weight: torch.Tensor, pattern: str) -> float | None:
    """The share of groups of M consecutive weights of a row with at most N nonzero ones; None where M does not fit."""
    keep, of = n_of_m(pattern)
    if weight.shape[1] % of:
        return None
    return float(((weight.reshape(-1, of) != 0).sum(dim=1) <= keep).float().mean())


def distinct_values(weight: torch.Tensor, group: int) -> int:
    """The largest number of distinct values that any group of `group` consecutive weights of a row holds."""
    ordered = weight.reshape(-1, group).sort(dim=1).values
    return int((ordered[:, 1:] != ordered[:, :-1]).sum(dim=1).max()) + 1


def worst(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The layer where each figure is worst: the lowest sparsity, the most distinct values, the largest error."""
    found = {}
    for figure, choose in (("sparsity", min), ("distinct_values", max), ("reconstruction_error", max)):
        values = {name: row[figure] for name, row in rows.items() if figure in row}
        if values:
            name = choose(values, key=values.__getitem__)
            found[figure] = {"layer": name, "value": values[name]}
    return found


def check_claims(claims: Claims, measured: dict[str, Any]) -> None:
    """Compares what a compressor says of its weights with what the weights show.

    Raises:
        UserError: a layer is less sparse than claimed, breaks the N:M pattern, or holds more distinct values per group
            than its bits allow.
    """
    for name, row in measured["layers"].items():
        if row["sparsity"] < claims.sparsity - 1e-9:
            raise UserError(
                f"compress: {name} is {row['sparsity']:.2%} zeros, less than the {claims.sparsity:.2%} that were asked"
                f" for; {FAULT}"
            )
        if claims.pattern and row["patterns"].get(claims.pattern, 0.0) < 1:
            raise UserError(f"compress: {name} breaks the pattern {claims.pattern}; {FAULT}")
        if claims.bits is not None and row["distinct_values"] > 2**claims.bits:
            raise UserError(
                f"compress: {name} holds {row['distinct_values']} distinct values in a group, more than {claims.bits}"
                f" bits can; {FAULT}"
            )
