"""Bytes of compressed models and of repairs in the store, from the shapes of a model's layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idp.config import Compressor, Recovery

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from idp.models import LoadedModel

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

    quantization = compressor.quantization
    if quantization.method is None:
        return parameters * itemsize
    if empty is None:
        return parameters * quantization.bits / 8
    layers = recipe.compressed_layers(empty.model)
    size = recipe.resolve_group_size(quantization, layers)
    packed = sum(
        layer_bytes(*layer.weight.shape, 8 * itemsize, quantization.bits, size, quantization.symmetric)
        for layer in layers.values()
    )
    return packed + (parameters - sum(layer.weight.numel() for layer in layers.values())) * itemsize


def repair_bytes(recovery: Recovery, empty: LoadedModel | None) -> float:
    """Bytes of a repair, with what is made beneath it: prompts as embeddings, prefixes as keys and values, adapters."""
    if empty is None:
        return 0.0
    from idp.prompting.shapes import prefix_width

    shape, total = empty.model.config.get_text_config(), 0.0
    part: Recovery | None = recovery
    while part is not None:
        if part.adapts and part.beneath is None:
            total += sum(part.rank * sum(size) * FLOAT for size in _targets(empty.model, part.targets))
        elif part.trains:
            width = prefix_width(shape) if part.method == "prefix" else shape.hidden_size
            total += sum(part.prompt_lengths()) * width * FLOAT
        part = part.beneath
    return total


def _targets(model: PreTrainedModel, targets: list[str]) -> list[tuple[int, int]]:
    """The shapes of the layers that an adapter goes on."""
    return [
        tuple(module.weight.shape)
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in targets and hasattr(module, "weight")
    ]
