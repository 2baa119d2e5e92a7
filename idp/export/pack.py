"""Frozen weights and the grids they lie on as compressed-tensors' `pack-quantized` tensors: exact, or refused.

The codes are found from the weights that were evaluated, and the weights that a reader will make from the codes are
compared with them bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idp.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from idp.compress.experts import Place

FORMAT = "pack-quantized"


def packed_state(
    model: nn.Module,
    grids: dict[str, torch.Tensor],
    *,
    bits: int,
    symmetric: bool,
    places: dict[str, Place] | None = None,
) -> dict[str, torch.Tensor]:
    """The model's state dict with every layer that has a grid replaced by its packed tensors.

    With `places`, the names are those of the checkpoint, which `save_pretrained` leaves as they are.

    Args:
        model: the frozen model.
        grids: `<layer>.scale` and `<layer>.zero_point`, each [rows, groups]; groups are equal runs of columns.
        bits: bits per weight, 1 to 8.
        symmetric: whether the grid has no zero points; none are written then.
        places: of a mixture of experts, where `idp.compress.experts.places` says that each expert's weights go.

    Raises:
        UserError: a layer's weights do not lie on its grid, and the layer is named; or transformers could not read
            what would be written.
    """
    state = _in_checkpoint(model, symmetric, places) if places else dict(model.state_dict())
    for layer in packed_layers(grids):
        tensor = places[f"{layer}.weight"].tensor if places and f"{layer}.weight" in places else f"{layer}.weight"
        weight = state.pop(tensor, None)
        if weight is None:
            raise UserError(f"{layer}: has a grid but no weight in this model; the run's artifacts do not fit together")
        scale, zero_point = grids[f"{layer}.scale"], grids[f"{layer}.zero_point"]
        try:
            tensors = pack(weight, scale.to(weight.device), zero_point.to(weight.device), bits, symmetric)
        except ValueError as error:
            raise UserError(f"{layer}: {error}; it cannot be packed without changing the model") from error
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


def packed_layers(grids: dict[str, torch.Tensor]) -> list[str]:
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
    codes = _codes(weight, scale, zero_point)
    lowest = -(1 << (bits - 1))
    if int(codes.min()) < lowest or int(codes.max()) > -lowest - 1:
        raise ValueError(f"a weight off its grid of {bits} bits")
    tensors = {
        "weight_packed": pack_to_int32(codes, bits),
        "weight_scale": scale.contiguous(),
        "weight_shape": torch.tensor(weight.shape),
    }
    if not symmetric:
        tensors["weight_zero_point"] = pack_to_int32(zero_point.to(torch.int8), bits, packed_dim=0).contiguous()
    return tensors


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
        actorder: the order of columns that GPTQ took; it does not change the format.
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


def _codes(weight: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """The codes that make `weight` exactly, [rows, columns] int8.

    Raises:
        ValueError: there are none.
    """
    import torch

    grouped = weight.unflatten(1, (scale.shape[1], -1))
    scale, zero_point = scale[..., None], zero_point[..., None]
    steps = (grouped.double() / scale.double()).round().nan_to_num(nan=0.0)  # 0 / 0: a group of zeros
    nearest = (steps + zero_point.double()).clamp(-128, 127)
    codes = nearest.to(torch.int8)
    unexplained = torch.ones_like(grouped, dtype=torch.bool)
    # An 8-bit code times a scale, rounded to bfloat16, may lie nearer to the next code.
    for aside in (0, 1, -1):
        tried = (nearest + aside).clamp(-128, 127)
        # As compressed-tensors will compute it: in the weight's dtype, not in one that hides rounding.
        made = (tried.to(scale.dtype) - zero_point.to(scale.dtype)) * scale
        right = unexplained & (made == grouped)
        codes = torch.where(right, tried.to(torch.int8), codes)
        unexplained &= ~right
    if bool(unexplained.any()):
        raise ValueError("a weight off its grid")
    return codes.flatten(1)
