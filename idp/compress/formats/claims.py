"""What a checkpoint claims of each layer, and whether the weights bear it out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from idp.compress.measure import distinct_values, measure_layer, worst
from idp.compress.sizes import effective_bits
from idp.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass
class FormatClaim:
    """One quantised layer, as the checkpoint has it.

    Attributes:
        bits: per weight, without scales; None where the format has no single number.
        group: what shares a scale: a number of consecutive columns, each column's group [columns], or "tensor".
        bytes: what the layer takes on disk, with scales and zero points.
    """

    bits: int | None
    group: int | str | torch.Tensor
    bytes: int


@dataclass
class Decompressed:
    """A checkpoint as plain numbers.

    Attributes:
        kind: its format, in a word.
        state: weights by the checkpoint's names.
        claims: of its quantised layers, by name.
        layer_bytes: what any layer takes on disk, by name; for layers that are not quantised as well.
        disk_bytes: what the weight files take.
        notes: what is different here from how its maker runs it.
    """

    kind: str
    state: dict[str, torch.Tensor]
    claims: dict[str, FormatClaim]
    layer_bytes: dict[str, int]
    disk_bytes: int
    notes: list[str] = field(default_factory=list)


def measure(found: Decompressed, layers: Iterable[tuple[str, torch.Tensor]]) -> dict[str, Any]:
    """What the weights are, as `idp.compress.measure.measure_weights` says it, with sizes from the files themselves.

    Args:
        found: the checkpoint.
        layers: name and weight [rows, columns] of every layer that a compressor may touch, as they are evaluated.

    Raises:
        UserError: a layer holds more distinct values per group than the bits that it claims allow.
    """
    rows: dict[str, dict[str, Any]] = {}
    zeros, total, inside, effective = 0, 0, 0, 0.0
    for name, weight in layers:
        claim, stored = found.claims.get(name), found.layer_bytes[name]
        row = measure_layer(weight, bits=None, group_size=None, symmetric=False)
        row["bits_per_weight"] = stored * 8 / weight.numel()
        row["bits"] = claim.bits if claim else None
        if claim and claim.bits is not None:
            row["distinct_values"] = distinct_in_groups(weight, claim.group)
            if row["distinct_values"] > 2**claim.bits:
                raise UserError(
                    f"compressor.path: {name} claims {claim.bits} bits and holds {row['distinct_values']} distinct"
                    " values in a group; the checkpoint's config is not that of its weights"
                )
        rows[name] = row
        zeros += row["zeros"]
        total += weight.numel()
        inside += stored
        value = claim.bits if claim and claim.bits is not None else row["bits_per_weight"]
        effective += effective_bits(row["sparsity"], row["bits_per_weight"], value, None) * weight.numel() / 8
    sizes = {claim.group for claim in found.claims.values() if isinstance(claim.group, int)}
    return {
        "sparsity": zeros / max(total, 1),
        "bits_per_weight": inside * 8 / max(total, 1),
        "packed_bytes": found.disk_bytes,
        "effective_bytes": round(effective + found.disk_bytes - inside),
        "compressed_weights": total,
        "group_size": sizes.pop() if len(sizes) == 1 else None,
        "patterns": {
            each: sum(row["patterns"][each] for row in rows.values()) / len(rows)
            for each in next(iter(rows.values()))["patterns"]
            if all(each in row["patterns"] for row in rows.values())
        },
        "worst": worst(rows),
        "layers": rows,
    }


def distinct_in_groups(weight: torch.Tensor, group: int | str | torch.Tensor) -> int:
    """The largest number of distinct values that any group of `weight` [rows, columns] holds; `group`: as claimed."""
    import torch

    if isinstance(group, str):
        return int(weight.unique().numel())
    if isinstance(group, int):
        return distinct_values(weight, weight.shape[1] if group == -1 else group)
    return max(distinct_values(part, part.shape[1]) for part in (weight[:, group == g] for g in torch.unique(group)))
