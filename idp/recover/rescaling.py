"""New quantisation scales as a repair: each layer's whole numbers stay, their scales are others.

scales/after/scales.safetensors     by the layer's name, [rows, groups], in the dtype in which they are stored packed
scales/before/scales.safetensors    `<layer>.scale` and `<layer>.zero_point` of the compressed model, by which its whole
                                    numbers are found
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from idp.compress import pack
from idp.errors import UserError
from idp.models import LoadedModel

if TYPE_CHECKING:
    import torch

BEFORE, AFTER, FILE = "before", "after", "scales.safetensors"


class Rescaled(NamedTuple):
    """Of a quantised layer the scales as they were and as they are, in the dtype in which they are stored packed, and
    the zero points, which stay; each [rows, groups]."""

    before: torch.Tensor
    after: torch.Tensor
    zero_point: torch.Tensor


def save(scales: Mapping[str, Rescaled], folder: Path) -> None:
    """Writes each layer's scales as they were and as they are."""
    from safetensors.torch import save_file

    parts: dict[str, dict[str, torch.Tensor]] = {BEFORE: {}, AFTER: {}}
    for name, each in scales.items():
        parts[AFTER][name] = each.after
        parts[BEFORE] |= {f"{name}.scale": each.before, f"{name}.zero_point": each.zero_point}
    for part, tensors in parts.items():
        (folder / part).mkdir(parents=True)
        save_file({name: each.detach().cpu().contiguous() for name, each in tensors.items()}, folder / part / FILE)


def load(folder: Path) -> dict[str, Rescaled]:
    """What `save` wrote.

    Raises:
        UserError: it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        before, after = (load_file(folder / part / FILE) for part in (BEFORE, AFTER))
        return {
            name: Rescaled(before[f"{name}.scale"], scale, before[f"{name}.zero_point"])
            for name, scale in after.items()
        }
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{folder}: the repair's scales cannot be read: {error}") from error


def attach(loaded: LoadedModel, folder: Path) -> LoadedModel:
    """The model with weights of its own whole numbers and the stored scales, frozen; a zero stays a zero.

    Raises:
        UserError: its weights do not lie on the grid that the scales were: they belong to another model.
    """
    import torch

    modules = dict(loaded.model.named_modules())
    for name, scales in load(folder).items():
        weight = getattr(modules.get(name), "weight", None)
        if weight is None:
            raise UserError(f"{folder}: the model has no layer {name}: the scales belong to another model")
        try:
            steps = steps_of(weight, scales.before.to(weight.device), scales.zero_point.to(weight.device))
        except ValueError as error:
            raise UserError(
                f"{folder}: {name}: {error} that the scales are for: they belong to another compressed model"
            ) from error
        made = weight_of(steps, scales.after.to(weight.device)).to(weight.dtype)
        modules[name]._parameters["weight"] = torch.nn.Parameter(made, requires_grad=False)
    return replace(loaded, model=loaded.model.eval())


def steps_of(weight: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """A layer's codes less their zero points, [rows, columns], int8 where that holds them, else int16.

    Args:
        weight: [rows, columns]; in another dtype than the scales, what they make was rounded to it.
        scale: [rows, groups]; groups are equal runs of columns.
        zero_point: [rows, groups].

    Raises:
        ValueError: the weight is not such whole numbers times the scale.
    """
    import torch

    rows, groups = scale.shape
    if weight.dim() != 2 or weight.shape[0] != rows or weight.shape[1] % groups:
        raise ValueError(f"a weight of {tuple(weight.shape)} off a grid of {tuple(scale.shape)}")
    if weight.dtype == scale.dtype:
        codes = pack.codes_of(weight, scale, zero_point).unflatten(1, (groups, -1))
        steps = codes.to(torch.int16) - zero_point[..., None].to(torch.int16)
    else:
        grouped, wide = weight.float().unflatten(1, (groups, -1)), scale.float()[..., None]
        nearest = (grouped / wide).round_().nan_to_num_(nan=0.0).clamp_(-255, 255)
        allowed = 2 * max(torch.finfo(each.dtype).eps for each in (weight, scale)) * grouped.abs()
        if bool(((nearest * wide - grouped).abs() > allowed).any()):
            raise ValueError("a weight off its grid")
        steps = nearest.to(torch.int16)
    steps, narrow = steps.flatten(1), torch.iinfo(torch.int8)
    return steps.to(torch.int8) if narrow.min <= int(steps.min()) and int(steps.max()) <= narrow.max else steps


def weight_of(steps: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The weight [out, in] in the scales' dtype, as who reads packed weights computes it.

    Args:
        steps: codes less their zero points, [out, in], whole numbers.
        scale: [out, groups]; groups are equal runs of columns.
    """
    grouped = steps.unflatten(1, (scale.shape[1], -1)).to(scale.dtype)
    return (grouped * scale[..., None]).flatten(1)


def in_grids(grids: Mapping[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """The grids of a compressed model, `<layer>.scale` and `<layer>.zero_point`, with the stored scales in them."""
    return {**grids, **{f"{name}.scale": scales.after for name, scales in load(folder).items()}}
