"""New values of a model's own parameters as a repair: norms, biases, scales. They are trained, stored, and put on it.

values/values.safetensors    by the parameter's name, in float32
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from idp.config import Training
from idp.errors import UserError
from idp.models import LoadedModel
from idp.recover.context import RepairContext, train_in
from idp.recover.fitting import Loss
from idp.recover.objective import text_loss
from idp.recover.training import History

if TYPE_CHECKING:
    import torch
    from torch import nn

FILE = "values.safetensors"
WITHIN_ADAPTED = ".base_layer"  # what PEFT calls a layer that has an adapter about it
Place = tuple["nn.Module", str]


def train_values(
    context: RepairContext, names: Iterable[str], options: Training
) -> tuple[dict[str, torch.Tensor], History]:
    """Trains some of the model's own parameters on the work's text; all else is frozen, and the model as it was after.

    They are trained in float32 and enter the model in its dtype.

    Args:
        work: the model, the text, the seed and the places; the teacher for objective=distill.
        names: the parameters, as the model's `named_parameters` names them.
        options: the training's.

    Returns:
        the trained values by name, float32 on the CPU, for `RepairResult.values`; and the history.

    Raises:
        UserError: none are named.
    """
    import torch

    model = context.loaded.model
    if not (places := _places(model, list(names))):
        raise UserError(f"recovery: {type(model).__name__} has none of the parameters that it would train")
    originals = {name: getattr(*where[0]) for name, where in places.items()}
    trained = {name: torch.nn.Parameter(value.detach().float().clone()) for name, value in originals.items()}
    loss = text_loss(context.loaded, options, context.teacher)

    def of(batch: torch.Tensor) -> torch.Tensor:
        with _in_place_of(places, {name: value.to(originals[name].dtype) for name, value in trained.items()}):
            return loss.of(batch)

    history = train_in(context, trained, Loss(of, loss.spare), options)
    return {_plain(name): value.detach().cpu() for name, value in trained.items()}, history


def save(values: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Writes new values of parameters; those of layers that have an adapter about them by their names without it."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    written = {_plain(name): value.detach().to("cpu", torch.float32).contiguous() for name, value in values.items()}
    save_file(written, folder / FILE)


def load(folder: Path) -> dict[str, torch.Tensor]:
    """What `save` wrote.

    Raises:
        UserError: it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / FILE}: the repair's values cannot be read: {error}") from error


def attach(loaded: LoadedModel, folder: Path) -> LoadedModel:
    """The model with stored values in place of its own, in its dtype, frozen. What is tied stays tied.

    Raises:
        UserError: it has no such parameter, or one of another shape: they belong to another model.
    """
    import torch

    values = load(folder)
    places = _places(loaded.model, values)
    for name, value in values.items():
        parameter = getattr(*places[name][0])
        if parameter.shape != value.shape:
            raise UserError(
                f"{folder}: {name} is {tuple(value.shape)}, the model's {tuple(parameter.shape)}: it belongs to another"
                " model"
            )
        changed = torch.nn.Parameter(value.to(parameter.device, parameter.dtype), requires_grad=False)
        for module, key in places[name]:
            module._parameters[key] = changed
    return replace(loaded, model=loaded.model.eval())


def _plain(name: str) -> str:
    return name.replace(WITHIN_ADAPTED, "")


def _places(model: nn.Module, names: Iterable[str]) -> dict[str, list[Place]]:
    """Where each parameter is held, in several places where it is tied."""
    known = {_plain(name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)}
    holders: dict[int, list[Place]] = {}
    for module in model.modules():
        for key, parameter in module._parameters.items():
            holders.setdefault(id(parameter), []).append((module, key))
    found = {}
    for name in names:
        if _plain(name) not in known:
            raise UserError(f"recovery: {type(model).__name__} has no parameter {name}: it is another model's")
        found[name] = holders[id(known[_plain(name)])]
    return found


@contextlib.contextmanager
def _in_place_of(places: dict[str, list[Place]], tensors: dict[str, torch.Tensor]) -> Iterator[None]:
    """A block in which the model computes with these tensors, through which gradients flow."""
    originals = {name: getattr(*where[0]) for name, where in places.items()}
    try:
        for name, where in places.items():
            for module, key in where:
                module._parameters[key] = tensors[name]
        yield
    finally:
        for name, where in places.items():
            for module, key in where:
                module._parameters[key] = originals[name]
