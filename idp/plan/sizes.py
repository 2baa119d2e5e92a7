"""Bytes of compressed models and of repairs in the store, from the shapes of a model's layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from idp.config import GRID, Compressor, Recovery

if TYPE_CHECKING:
    from idp.models import LoadedModel
    from idp.store import Identity

KEPT_POSITION = 1024  # bytes that one position of the dense model's predictions takes (idp.evaluate.divergence)
FLOAT = 4  # bytes of a repair's numbers


def compressed_bytes(compressor: Compressor, parameters: float, itemsize: int, empty: LoadedModel | None) -> float:
    """Bytes of a compressed model: quantised layers packed, all else as it is, zeros among them.

    Args:
        compressor: what compresses it.
        parameters: the number of its weights.
        itemsize: bytes of a dense weight.
        empty: its layers; None where nothing is known but the number of weights.
    """
    from idp.compress import recipe
    from idp.compress.sizes import layer_bytes

    claims = compressor.claims(compressor.resolve(empty.model) if empty is not None else None)
    if claims.bits is None:
        return parameters * itemsize
    if empty is None:
        return parameters * claims.bits / 8
    layers = recipe.compressed_layers(empty.model)
    packed = 0
    for layer in layers.values():
        rows, columns = layer.weight.shape
        packed += layer_bytes(rows, columns, 8 * itemsize, claims.bits, claims.group_size, claims.symmetric)
    return packed + (parameters - sum(layer.weight.numel() for layer in layers.values())) * itemsize


def taught_bytes(kept: Identity, vocabulary: int) -> float:
    """Bytes of what is kept of a dense model's predictions for a part of a corpus, at most."""
    from idp.recover.cached import token_bytes

    config = kept.config
    return float(config["blocks"] * config["length"] * token_bytes(config["kept"][0], vocabulary))


def repair_bytes(recovery: Recovery, compressor: Compressor, empty: LoadedModel | None) -> float:
    """Bytes of a repair, with what is made beneath it: prompts as embeddings, prefixes as keys and values, adapters.

    Args:
        recovery: what makes it.
        compressor: what has compressed the model.
        empty: the model's layers; None where they are not known.
    """
    numbers, part = 0, recovery if empty is not None else None
    while part is not None and empty is not None:
        if GRID in part.needs and empty.grid is None:
            empty = replace(empty, grid=compressor.claims(compressor.resolve(empty.model)))
        numbers += part.numbers(empty)
        part = part.beneath
    return float(numbers * FLOAT)
