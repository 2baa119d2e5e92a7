"""The layers that compressors touch; pruning and quantisation as llmcompressor modifiers, checked against them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idp.config import CALIBRATION, DENSE, Compressor, n_of_m
from idp.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from idp.compress.options import Methods, Quantization, Sparsity

GROUP_SIZES = (128, 64, 32)


def needs_data(compressor: Compressor) -> bool:
    """Whether the method itself looks at calibration text: round-to-nearest and magnitude pruning do not."""
    return CALIBRATION in compressor.needs


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


def check_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that any compressor is given, experts among them; `model`'s weights need not be there.

    Raises:
        UserError: there are no linear layers, or a matrix would be left dense without a word.
    """
    from idp.compress import experts

    if not (layers := given_layers(model)):
        raise UserError(
            f"compressor: {type(model).__name__} has no torch.nn.Linear layers to compress; use compressor=none"
        )
    with experts.as_linear(model):
        experts.check_covered(model)
    return layers


def given_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that any compressor is given, experts among them; the model is as it was."""
    from idp.compress import experts

    with experts.as_linear(model):
        return compressed_layers(model)


def check(compressor: Methods, model: nn.Module) -> int | None:
    """Checks pruning and quantisation against the layers of `model`, whose weights need not be there.

    Returns:
        the group size in use; None where nothing is quantised.

    Raises:
        UserError: an N:M pattern or a group size does not divide a layer's width, which is named; the quantiser does
            not know the architecture; there are no linear layers; or a matrix would be left dense without a word.
    """
    if DENSE not in compressor.needs:
        return None
    layers, quantizer = check_layers(model), compressor.quantization.quantizer
    if compressor.sparsity.method:
        _check_pattern(compressor.sparsity, layers)
    if quantizer is None:
        return None
    quantizer.check_model(model)
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


def build(compressor: Methods, group_size: int | None, model: nn.Module) -> list[Any]:
    """The llmcompressor modifiers, in order: pruning before quantisation, which then keeps the zeros.

    Args:
        compressor: what to do.
        group_size: as `check` resolved it.
        model: the model that they will run on.
    """
    pruner, quantizer = compressor.sparsity.pruner, compressor.quantization.quantizer
    rounding = []
    if quantizer is not None:
        scheme = _scheme(compressor.quantization, group_size, model)
        rounding = quantizer.modifiers(compressor.quantization, scheme, model, pruner is not None)
    if pruner is None:
        return rounding
    return [pruner.modifier(compressor.sparsity, compressed_layers(model), rounding), *rounding]


def _scheme(quantization: Quantization, group_size: int | None, model: nn.Module) -> dict[str, Any]:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weights = QuantizationArgs(
        num_bits=quantization.bits,
        type="int",
        symmetric=quantization.symmetric,
        strategy="channel" if group_size == -1 else "group",
        group_size=None if group_size == -1 else group_size,
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    return {"config_groups": {"group_0": scheme}, "ignore": left_dense(model)}


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
