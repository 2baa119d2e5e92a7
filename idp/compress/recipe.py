"""A compressor's config as an llmcompressor recipe, checked against the layers that it will meet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idp.config import Compressor, Quantization
from idp.errors import UserError

if TYPE_CHECKING:
    from torch import nn

# The output head stays as it is, as in the papers; it is often tied to the embeddings.
IGNORED = ("lm_head",)
GROUP_SIZES = (128, 64, 32)


def label(compressor: Compressor) -> str:
    """A short name made from what the compressor does, such as `gptq3`, `gptq4-g128` or `none`."""
    sparsity, quantization = compressor.sparsity, compressor.quantization
    parts = []
    if sparsity.method:
        pattern = sparsity.pattern.replace(":", "of") if sparsity.pattern else ""
        parts.append(f"{sparsity.method}_{pattern}" if pattern else f"{sparsity.method}{sparsity.level * 100:g}")
    if quantization.method:
        group = "" if quantization.group_size == "auto" else f"-g{quantization.group_size}"
        parts.append(f"{quantization.method}{quantization.bits}{group}")
    return "_".join(parts) or "none"


def check_supported(compressor: Compressor) -> None:
    """Refuses, before any work, what this version cannot do."""
    if compressor.sparsity.method or compressor.quantization.method not in (None, "gptq"):
        raise UserError(f"compressor: {label(compressor)} is not available yet; use none, gptq2, gptq3, gptq4 or gptq8")


def compressed_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers that a compressor touches, by name: all but the output head."""
    from torch import nn

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] not in IGNORED
    }


def resolve_group_size(quantization: Quantization, layers: dict[str, nn.Linear]) -> int:
    """The group size in use: -1 for a row; `auto` is the largest of 128, 64, 32 that divides every layer's width.

    Raises:
        UserError: the size does not divide a layer's width; the layer is named.
    """
    size = quantization.group_size
    if size == "auto":
        fitting = [s for s in GROUP_SIZES if all(layer.in_features % s == 0 for layer in layers.values())]
        return fitting[0] if fitting else -1
    if size == -1:
        return -1
    for name, layer in layers.items():
        if layer.in_features % size:
            raise UserError(
                f"compressor.quantization.group_size={size}: does not divide {name}, whose width is"
                f" {layer.in_features}; use auto, -1 (a whole row) or a divisor"
            )
    return size


def build(compressor: Compressor, group_size: int) -> list[Any]:
    """The llmcompressor modifiers, in order."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier

    quantization = compressor.quantization
    weights = QuantizationArgs(
        num_bits=quantization.bits,
        type="int",
        symmetric=quantization.symmetric,
        strategy="channel" if group_size == -1 else "group",
        group_size=None if group_size == -1 else group_size,
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    return [GPTQModifier(config_groups={"group_0": scheme}, ignore=list(IGNORED), actorder=quantization.actorder)]
