"""A compressor's config as llmcompressor modifiers, checked against the layers that it will meet."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.config import CALIBRATED, Compressor, Quantization, Sparsity, n_of_m
from idp.errors import UserError

if TYPE_CHECKING:
    from torch import nn

GROUP_SIZES = (128, 64, 32)
BLOCK_COLUMNS = 128  # GPTQ and SparseGPT update the columns behind a block of this many at once, as in the papers


def label(compressor: Compressor) -> str:
    """A short name made from what the compressor does, such as `gptq3`, `sparsegpt_2of4_gptq4-g128` or `none`."""
    if compressor.path is not None:
        return f"external-{Path(compressor.path.rstrip('/')).name.removesuffix('.gguf')}"
    sparsity, quantization = compressor.sparsity, compressor.quantization
    parts = []
    if sparsity.method:
        pattern = sparsity.pattern.replace(":", "of") if sparsity.pattern else ""
        parts.append(f"{sparsity.method}_{pattern}" if pattern else f"{sparsity.method}{sparsity.level * 100:g}")
    if quantization.method:
        group = "" if quantization.group_size == "auto" else f"-g{quantization.group_size}"
        parts.append(f"{quantization.method}{quantization.bits}{group}")
    return "_".join(parts) or "none"


def needs_data(compressor: Compressor) -> bool:
    """Whether the method itself looks at calibration text: round-to-nearest and magnitude pruning do not."""
    return compressor.sparsity.method in CALIBRATED or compressor.quantization.method in CALIBRATED


def output_head(model: nn.Module) -> list[str]:
    """The name of the output head, which stays as it is, as in the papers; it is often tied to the embeddings."""
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if module is head and head is not None]


def compressed_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers that a compressor touches, by name: all but the output head and the routers of experts.

    A mixture's experts are among them where `idp.compress.experts.split` has taken them apart.
    """
    from torch import nn

    from idp.compress.experts import routers

    left = {*output_head(model), *routers(model)}
    return {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in left
    }


def left_dense(model: nn.Module) -> list[str]:
    """The linear layers that a compressor must not touch, by name: the output head and routers."""
    from torch import nn

    touched = compressed_layers(model)
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in touched]


def check(compressor: Compressor, model: nn.Module) -> int | None:
    """Checks the compressor against the layers of `model`, whose weights need not be there.

    Returns:
        the group size in use; None where nothing is quantised.

    Raises:
        UserError: an N:M pattern or a group size does not divide a layer's width, which is named; AWQ does not know
            the architecture; there are no linear layers; or a matrix would be left dense without a word.
    """
    if not (compressor.sparsity.method or compressor.quantization.method):
        return None
    from idp.compress import experts

    mixture = bool(experts.places(model))
    with experts.as_linear(model):
        layers = compressed_layers(model)
        if not layers:
            raise UserError(
                f"compressor: {type(model).__name__} has no torch.nn.Linear layers to compress; use compressor=none"
            )
        experts.check_covered(model)
    if compressor.sparsity.method:
        _check_pattern(compressor.sparsity, layers)
    if compressor.quantization.method is None:
        return None
    if compressor.quantization.method == "awq":
        if mixture:
            raise UserError(
                f"compressor.quantization.method=awq: {type(model).__name__} is a mixture of experts, in which its"
                " scaling is not known to leave the router's input as it is; use gptq or rtn"
            )
        from idp.compress.terminal import quiet

        with quiet():
            from idp.compress.awq import check_architecture

            check_architecture(model)
    return resolve_group_size(compressor.quantization, layers)


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


def build(compressor: Compressor, group_size: int | None, model: nn.Module) -> list[Any]:
    """The llmcompressor modifiers, in order: pruning before quantisation, which then keeps the zeros.

    Args:
        compressor: what to do.
        group_size: as `check` resolved it.
        model: the model that they will run on.
    """
    sparsity, quantization = compressor.sparsity, compressor.quantization
    if not quantization.method:
        return [_pruning(sparsity, compressed_layers(model))]
    rounding = _quantizing(quantization, group_size, model, keep_zeros=bool(sparsity.method))
    if not sparsity.method:
        return rounding
    shared = rounding[0] if (sparsity.method, quantization.method) == ("sparsegpt", "gptq") else None
    return [_pruning(sparsity, compressed_layers(model), shared), *rounding]


def _pruning(sparsity: Sparsity, layers: dict[str, nn.Linear], gptq: Any = None) -> Any:
    """The pruner; `gptq` is the modifier behind it whose Hessians it may share."""
    names, pattern = list(layers), sparsity.pattern
    if sparsity.method == "magnitude":
        from idp.compress.magnitude import MagnitudeModifier

        return MagnitudeModifier(names=names, level=sparsity.level, pattern=pattern)
    pruned_of = "0:0"
    if pattern:  # llmcompressor counts what is set to zero, the field what is kept
        keep, of = n_of_m(pattern)
        pruned_of = f"{of - keep}:{of}"
    if sparsity.method == "wanda":
        from llmcompressor.modifiers.pruning import WandaPruningModifier

        # It rounds the count per row down; the half keeps a float's last bit from taking one more off.
        levels = [
            (math.ceil(sparsity.level * layer.in_features - 1e-9) + 0.5) / layer.in_features
            for layer in layers.values()
        ]
        return WandaPruningModifier(sparsity=levels, mask_structure=pruned_of, targets=names)
    from llmcompressor.modifiers.pruning import SparseGPTModifier

    block = BLOCK_COLUMNS
    if pattern:  # a group of M must not lie across two blocks
        block = of * max(1, BLOCK_COLUMNS // of)
    options = {"sparsity": sparsity.level, "mask_structure": pruned_of, "targets": names, "block_size": block}
    if gptq is None:
        return SparseGPTModifier(**options)
    from idp.compress.joint import SharingSparseGPTModifier

    return SharingSparseGPTModifier(**options).share(gptq)


def _quantizing(quantization: Quantization, group_size: int, model: nn.Module, keep_zeros: bool) -> list[Any]:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    from idp.compress.joint import MaskedGPTQModifier

    weights = QuantizationArgs(
        num_bits=quantization.bits,
        type="int",
        symmetric=quantization.symmetric,
        strategy="channel" if group_size == -1 else "group",
        group_size=None if group_size == -1 else group_size,
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    options = {"config_groups": {"group_0": scheme}, "ignore": left_dense(model)}
    if quantization.method == "gptq":
        modifier = MaskedGPTQModifier if keep_zeros else GPTQModifier
        return [modifier(**options, actorder=quantization.actorder, block_size=BLOCK_COLUMNS)]
    if quantization.method == "awq":
        from idp.compress.awq import RecordingAWQModifier, mappings

        scaling = RecordingAWQModifier(mappings=mappings(model)).behind_pruning(keep_zeros)
        return [scaling, QuantizationModifier(**options)]
    return [QuantizationModifier(**options)]


def _check_pattern(sparsity: Sparsity, layers: dict[str, nn.Linear]) -> None:
    if sparsity.pattern is None:
        return
    _, of = n_of_m(sparsity.pattern)
    for name, layer in layers.items():
        if layer.in_features % of:
            raise UserError(
                f"compressor.sparsity.pattern={sparsity.pattern}: {name} is {layer.in_features} wide, which {of} does"
                " not divide; use another pattern, or compressor.sparsity.pattern=null"
            )


def as_yaml(modifiers: list[Any]) -> str:
    """The modifiers as llmcompressor writes a recipe."""
    from llmcompressor.recipe import Recipe

    return Recipe.from_modifiers(modifiers).yaml()
