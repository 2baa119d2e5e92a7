"""Frozen weights and the grids they lie on as compressed-tensors' `pack-quantized` tensors: exact, or refused.

The codes are found from the weights that were evaluated, and the weights that a reader will make from the codes are
compared with them bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from idp.errors import UserError
from idp.models.unpacking import SCALE, SHAPE, WORDS, ZERO_POINT, unpack

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from idp.compress.experts import Place

FORMAT = "pack-quantized"
CHUNK = 1 << 22  # weights whose codes are looked for at a time


def packed_state(
    model: nn.Module,
    grids: dict[str, torch.Tensor],
    *,
    bits: int,
    symmetric: bool,
    places: dict[str, Place] | None = None,
    refused: list[str] | None = None,
) -> dict[str, torch.Tensor]:
    """The model's state dict with every layer that has a grid replaced by its packed tensors.

    With `places`, the names are those of the checkpoint, which `save_pretrained` leaves as they are.

    Args:
        model: the frozen model.
        grids: `<layer>.scale` and `<layer>.zero_point`, each [rows, groups]; groups are equal runs of columns.
        bits: bits per weight, 1 to 8.
        symmetric: whether the grid has no zero points; none are written then.
        places: of a mixture of experts, where `idp.compress.experts.places` says that each expert's weights go.
        refused: takes the names of layers that do not come back from their packed form to the last bit, which then stay
            as they are; None: they are refused.

    Raises:
        UserError: a layer's weights do not lie on its grid, and the layer is named; or transformers could not read
            what would be written.
    """
    state = _in_checkpoint(model, symmetric, places) if places else dict(model.state_dict())
    for layer in packed_layers(grids):
        tensor = places[f"{layer}.weight"].tensor if places and f"{layer}.weight" in places else f"{layer}.weight"
        weight = state.get(tensor)
        if weight is None:
            raise UserError(f"{layer}: has a grid but no weight in this model; the run's artifacts do not fit together")
        scale, zero_point = grids[f"{layer}.scale"], grids[f"{layer}.zero_point"]
        try:
            tensors = pack(weight, scale.to(weight.device), zero_point.to(weight.device), bits, symmetric)
            if refused is not None:
                _check_bits(weight, tensors, bits)
        except ValueError as error:
            if refused is None:
                raise UserError(f"{layer}: {error}; it cannot be packed without changing the model") from error
            refused.append(layer)
            continue
        del state[tensor]
        stored = tensor.removesuffix(".weight")
        state |= {f"{stored}.{name}": packed for name, packed in tensors.items()}
    return state


def _in_checkpoint(model: nn.Module, symmetric: bool, places: dict[str, Place]) -> dict[str, torch.Tensor]:
    """The state dict of a mixture of experts by the checkpoint's names, each expert's weights by themselves.

    Raises:
        UserError: transformers could not read its packed experts.
    """
    from transformers.core_model_loading import revert_weight_conversion

    name = type(model).__name__
    if not symmetric:
        raise UserError(
            f"{name}: transformers reads packed experts without their zero points, so that they would be other weights"
            " there; compress with compressor.quantization.symmetric=true to export it"
        )
    if any(place.index or not place.tensor.endswith(".weight") for place in places.values()):
        raise UserError(
            f"{name}: its checkpoints keep all experts of a layer in one tensor, and transformers reads packed experts"
            " one by one only; it cannot be exported packed"
        )
    return revert_weight_conversion(model, dict(model.state_dict()))


def _check_bits(weight: torch.Tensor, tensors: dict[str, torch.Tensor], bits: int) -> None:
    """Unpacks what was packed and compares it, signs of zeros included.

    Raises:
        ValueError: it is not the same to the last bit.
    """
    import torch

    again = unpack(tensors[WORDS], tensors[SCALE], tensors.get(ZERO_POINT), list(weight.shape), bits)
    if not torch.equal(*(each.contiguous().view(torch.uint8) for each in (again, weight))):
        raise ValueError("a weight that its packed form does not hold to the last bit")


def packed_layers(grids: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of the layers that have a grid."""
    return [name.removesuffix(".scale") for name in grids if name.endswith(".scale")]


def pack(
    weight: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, bits: int, symmetric: bool
) -> dict[str, torch.Tensor]:
    """One layer's packed tensors, by compressed-tensors' names.

    Args:
        weight: [rows, columns], every value `scale * (code - zero_point)` in the weight's own dtype.
        scale: [rows, groups].
        zero_point: [rows, groups].
        bits: bits per code; codes are from -2^(bits-1) to 2^(bits-1) - 1.
        symmetric: whether all zero points are zero and none are written.

    Raises:
        ValueError: a weight that does not lie on the grid, or a zero point where there should be none.
    """
    import torch
    from compressed_tensors.compressors.pack_quantized import pack_to_int32

    if symmetric and bool(zero_point.any()):
        raise ValueError("a symmetric grid with zero points")
    scale = scale.to(weight.dtype)
    lowest, words = -(1 << (bits - 1)), []
    rows = max(1, CHUNK // weight.shape[1])  # at a time: what is computed on the way is many times what comes out
    for part in (slice(start, start + rows) for start in range(0, weight.shape[0], rows)):
        codes = codes_of(weight[part], scale[part], zero_point[part])
        if int(codes.min()) < lowest or int(codes.max()) > -lowest - 1:
            raise ValueError(f"a weight off its grid of {bits} bits")
        words.append(pack_to_int32(codes, bits))
    tensors = {WORDS: torch.cat(words), SCALE: scale.contiguous(), SHAPE: torch.tensor(weight.shape)}
    if not symmetric:
        tensors[ZERO_POINT] = pack_to_int32(zero_point.to(torch.int8), bits, packed_dim=0).contiguous()
    return tensors


def describe(folder: Path, model: PreTrainedModel, grids: dict[str, torch.Tensor], **arguments: Any) -> None:
    """Says in the config.json of a folder how its layers are packed; arguments as of `quantization_config`.

    Args:
        folder: where the model with its packed layers was written.
        model: the model.
        grids: of the layers that are packed.
        arguments: `bits`, `group_size`, `symmetric` and `actorder`.
    """
    from compressed_tensors.compressors import ModelCompressor

    from idp.compress import experts

    described = quantization_config(model, grids, routers=experts.saved_routers(model), **arguments)
    ModelCompressor(quantization_config=described).update_config(str(folder))


def quantization_config(
    model: nn.Module,
    grids: dict[str, torch.Tensor],
    *,
    bits: int,
    group_size: int,
    symmetric: bool,
    actorder: Any,
    routers: list[str] | None = None,
) -> Any:
    """The `QuantizationConfig` that tells a reader how the packed layers are packed and which layers are not.

    Args:
        model: the model, for the linear layers that have no grid.
        grids: as for `packed_state`.
        bits: bits per weight.
        group_size: weights that share a scale; -1: a whole row.
        symmetric: whether the grid has no zero points.
        actorder: GPTQ's activation ordering; it does not change the format.
        routers: of a mixture of experts, by the checkpoint's names: other readers take them for linear layers.
    """
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from torch import nn

    weights = QuantizationArgs(
        num_bits=bits,
        type="int",
        symmetric=symmetric,
        strategy="channel" if group_size == -1 else "group",
        group_size=None if group_size == -1 else group_size,
        actorder=actorder,
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, format=FORMAT)
    packed = set(packed_layers(grids))
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return QuantizationConfig(
        config_groups={"group_0": scheme},
        format=FORMAT,
        quantization_status="compressed",
        ignore=list(dict.fromkeys([*(name for name in linear if name not in packed), *(routers or [])])),
    )


def codes_of(weight: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """The codes that make `weight` exactly, [rows, columns] int8.

    Args:
        weight: [rows, columns].
        scale: [rows, groups], in the weight's dtype; groups are equal runs of columns.
        zero_point: [rows, groups].

    Raises:
        ValueError: there are none.
    """
    import torch

    wide = torch.promote_types(weight.dtype, torch.float32)  # a quotient is a code within a few units in its last place
    grouped = weight.unflatten(1, (scale.shape[1], -1))
    scale, zero_point = scale[..., None], zero_point[..., None]
    steps = (grouped.to(wide) / scale.to(wide)).round_().nan_to_num_(nan=0.0)  # 0 / 0: a group of zeros
    nearest = steps.add_(zero_point.to(wide)).clamp_(-128, 127)
    codes = nearest.to(torch.int8)
    unexplained = torch.ones_like(grouped, dtype=torch.bool)
    # An 8-bit code times a scale, rounded to bfloat16, may lie nearer to the next code.
    for aside in (0, 1, -1):
        tried = (nearest + aside).clamp_(-128, 127)
        # As compressed-tensors will compute it: in the weight's dtype, not in one that hides rounding.
        made = (tried.to(scale.dtype) - zero_point.to(scale.dtype)) * scale
        right = unexplained & (made == grouped)
        codes = torch.where(right, tried.to(torch.int8), codes)
        unexplained &= ~right
        if not bool(unexplained.any()):
            return codes.flatten(1)
    raise ValueError("a weight off its grid")
