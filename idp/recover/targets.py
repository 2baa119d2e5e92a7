"""Which layers a repair of the weights goes on: by name, or all linear ones.

A mixture's experts that transformers keeps stacked in parameters of three dimensions are no layers, and have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from idp.errors import UserError
from idp.models import LoadedModel

if TYPE_CHECKING:
    import torch
    from torch import nn

ALL_LINEAR = "all-linear"
TARGETS = "names of the linear layers that are repaired; all-linear: all but the output head and routers of experts"


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer by name: those of torch, and GPT-2's, which hold their weight transposed."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}


def target_layers(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Module]:
    """The layers that `targets` name, by their full names and in the model's order."""
    layers = linear_layers(model)
    left = left_alone(model) if ALL_LINEAR in targets else set()
    return {
        name: layer
        for name, layer in layers.items()
        if name.rsplit(".", 1)[-1] in targets or (ALL_LINEAR in targets and name not in left)
    }


def left_alone(model: nn.Module) -> set[str]:
    """The linear layers that compressors leave dense: the output head and routers of experts."""
    from idp.compress import experts
    from idp.compress.recipe import output_head

    left = set(output_head(model))
    if experts.stacked_experts(model):
        with experts.as_linear(model):
            left |= set(experts.routers(model))
    return left


def is_transposed(layer: nn.Module) -> bool:
    """Whether a layer holds its weight as [in, out], as GPT-2's do."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, Conv1D)


def matrix(layer: nn.Module) -> torch.Tensor:
    """A linear layer's weight as [out, in], whichever way the layer holds it."""
    weight: torch.Tensor = layer.weight
    return weight.T if is_transposed(layer) else weight


def update_numbers(model: nn.Module, targets: Sequence[str], rank: int) -> int:
    """How many numbers updates of that rank have: rank * (in + out) for each layer."""
    return sum(rank * sum(layer.weight.shape) for layer in target_layers(model, targets).values())


def check_named(targets: Sequence[str], place: str = "recovery") -> None:
    """Refuses options that name no layers.

    Raises:
        UserError: saying how to name some.
    """
    if not targets:
        raise UserError(
            f"{place}.targets is empty: name the layers to adapt, such as {place}.targets=[q_proj,v_proj], or"
            f" {place}.targets=[{ALL_LINEAR}]"
        )


def check_targets(loaded: LoadedModel, targets: Sequence[str]) -> None:
    """Refuses targets that match no linear layer.

    Raises:
        UserError: naming the layers that there are.
    """
    names = {name.rsplit(".", 1)[-1] for name in linear_layers(loaded.model)}
    if unknown := [target for target in targets if target not in names and target != ALL_LINEAR]:
        raise UserError(
            f"recovery.targets={list(targets)}: no layer is called {', '.join(unknown)}; there are"
            f" {', '.join(sorted(names))}, and {ALL_LINEAR} for all that are compressed"
        )


def check_rank(loaded: LoadedModel, targets: Sequence[str], rank: int) -> None:
    """Refuses a rank that a layer's update cannot have.

    Raises:
        UserError: naming the smallest of those layers.
    """
    layers = {name: layer.weight.shape for name, layer in target_layers(loaded.model, targets).items()}
    if not layers:
        raise UserError(f"recovery.targets={list(targets)}: {type(loaded.model).__name__} has no such layers")
    name = min(layers, key=lambda name: min(layers[name]))
    rows, columns = layers[name]
    if rank > min(rows, columns):
        raise UserError(
            f"recovery.rank={rank}: {name} is {rows} x {columns}; use {min(rows, columns)} or less, or other targets"
        )
