"""New quantisation scales as a repair: each layer's whole numbers stay, their scales are others.

scales/after/scales.safetensors     by the layer's name, [rows, groups], in the dtype in which they are stored packed
scales/before/scales.safetensors    those of the compressed model, from which its whole numbers are found
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from idp.compress import pack
from idp.errors import UserError
from idp.models import LoadedModel

if TYPE_CHECKING:
    import torch

BEFORE, AFTER, FILE = "before", "after", "scales.safetensors"
Scales = Mapping[str, tuple["torch.Tensor", "torch.Tensor"]]


def save(scales: Scales, folder: Path) -> None:
    """Writes each layer's scales as they were and as they are."""
    from safetensors.torch import save_file

    for number, part in enumerate((BEFORE, AFTER)):
        (folder / part).mkdir(parents=True)
        tensors = {name: pair[number].detach().cpu().contiguous() for name, pair in scales.items()}
        save_file(tensors, folder / part / FILE)


def load(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What `save` wrote.

    Raises:
        UserError: it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        before, after = (load_file(folder / part / FILE) for part in (BEFORE, AFTER))
        return {name: (before[name], scale) for name, scale in after.items()}
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{folder}: the repair's scales cannot be read: {error}") from error


def attach(loaded: LoadedModel, folder: Path) -> LoadedModel:
    """The model with weights of its own whole numbers and the stored scales, frozen; a zero stays a zero.

    Raises:
        UserError: its weights do not lie on the grid that the scales were: they belong to another model.
    """
    import torch

    from idp.recover.nets.scaled_linear import weight_of

    modules = dict(loaded.model.named_modules())
    for name, (before, after) in load(folder).items():
        weight = getattr(modules.get(name), "weight", None)
        if weight is None:
            raise UserError(f"{folder}: the model has no layer {name}: the scales belong to another model")
        try:
            steps = steps_of(weight, before.to(weight.device))
        except ValueError as error:
            raise UserError(
                f"{folder}: {name}: {error} that the scales are for: they belong to another compressed model"
            ) from error
        made = weight_of(steps, after.to(weight.device)).to(weight.dtype)
        modules[name]._parameters["weight"] = torch.nn.Parameter(made, requires_grad=False)
    return replace(loaded, model=loaded.model.eval())


def steps_of(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A layer's codes less their zero points, [rows, columns], int8 where that holds them, else int16.

    Args:
        weight: [rows, columns]; in another dtype than the scales, what they make was rounded to it.
        scale: [rows, groups]; groups are equal runs of columns.

    Raises:
        ValueError: the weight is not such whole numbers times the scale.
    """
    import torch

    if weight.dim() != 2 or weight.shape[0] != scale.shape[0] or weight.shape[1] % scale.shape[1]:
        raise ValueError(f"a weight of {tuple(weight.shape)} off a grid of {tuple(scale.shape)}")
    if weight.dtype == scale.dtype:
        steps = pack.steps(weight, scale)
    else:
        grouped, wide = weight.float().unflatten(1, (scale.shape[1], -1)), scale.float()[..., None]
        nearest = (grouped / wide).round_().nan_to_num_(nan=0.0).clamp_(-pack.MOST, pack.MOST)
        allowed = 2 * max(torch.finfo(each.dtype).eps for each in (weight, scale)) * grouped.abs()
        if bool(((nearest * wide - grouped).abs() > allowed).any()):
            raise ValueError("a weight off its grid")
        steps = nearest.flatten(1).to(torch.int16)
    narrow = torch.iinfo(torch.int8)
    return steps.to(torch.int8) if narrow.min <= int(steps.min()) and int(steps.max()) <= narrow.max else steps


def in_grids(grids: Mapping[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """The grids of a compressed model, `<layer>.scale` and `<layer>.zero_point`, with the stored scales in them."""
    return {**grids, **{f"{name}.scale": after for name, (_, after) in load(folder).items()}}
