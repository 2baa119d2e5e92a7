"""The dense model beside the one that learns from it: on the same device, or layer by layer out of main memory.

Two models of 7 billion parameters in bfloat16 are 27 GB. A teacher that is streamed takes the place of one decoder
layer on the device (400 MB); each step brings all of them over once more (13.5 GB: half a second at 25 GB/s). What it
says is the same, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import config as schema
from idp import memory, models

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from idp.models import LoadedModel

log = logging.getLogger(__name__)

STREAMED = "_idp_streamed"


def open_teacher(folder: Path, model: schema.Model, training: schema.Training, student: LoadedModel) -> LoadedModel:
    """The dense model of `folder`, frozen, as `training.teacher` says.

    Weights outside its decoder layers that equal the student's (embeddings, the head) are the student's own.

    Args:
        folder: the dense model's.
        model: the run's model.
        training: `teacher` says where it is to be; on a CPU, which is main memory, it is resident.
        student: the compressed model, in memory.
    """
    from dataclasses import replace

    device = student.device
    one = device.type != "cpu" and not model.device_map
    wanted = training.teacher
    if wanted == "auto":
        wanted = "resident" if not one or _fits(student) else "streamed"
    if wanted == "resident" or not one:
        loaded = models.open_model(folder, model)
        share(loaded.model, student.model)
        return loaded
    log.info("the teacher is streamed: its layers come out of main memory one by one")
    loaded = models.open_model(folder, replace(model, device="cpu"))
    share(loaded.model, student.model)
    stream(loaded.model, device)
    return loaded


def share(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    """Lets the teacher hold the student's own tensors for those weights outside its layers that are equal."""
    import torch

    inside = _inside_layers(teacher)
    theirs = dict(student.named_parameters(remove_duplicate=False))
    for path, module in teacher.named_modules():
        for name, weight in module._parameters.items():
            other = theirs.get(f"{path}.{name}" if path else name)
            if module in inside or weight is None or other is None or "meta" in (weight.device.type, other.device.type):
                continue
            if (
                weight.shape == other.shape
                and weight.dtype == other.dtype
                and torch.equal(weight, other.to(weight.device))
            ):
                module._parameters[name] = other


def is_streamed(model: PreTrainedModel) -> bool:
    """Whether a model's layers are in main memory, each on its device only while it runs."""
    return hasattr(model, STREAMED)


def can_be_streamed(teacher: LoadedModel) -> bool:
    """Whether a teacher's layers are on an accelerator, all on one, and could be brought there one by one instead."""
    devices = {parameter.device for parameter in teacher.model.parameters()}
    return len(devices) == 1 and devices.pop().type != "cpu" and not is_streamed(teacher.model)


def stream(model: PreTrainedModel, device: torch.device) -> None:
    """Keeps a model's decoder layers in main memory from now on, each on `device` only while it runs; frozen.

    All else of it is on `device` for good.
    """
    from idp.compress.forward import decoder_layers

    inside = _inside_layers(model)
    for layer in decoder_layers(model):
        layer.forward = _brought(layer, device)
    places = [place for module in model.modules() if module not in inside for place in _places(module)]
    moved = {
        id(tensor): _like(tensor, tensor.detach().to(device)) for _, _, tensor in places
    }  # what is tied stays tied
    for held, name, tensor in places:
        held[name] = moved[id(tensor)]
    setattr(model, STREAMED, True)


def _brought(layer: nn.Module, device: torch.device) -> Callable:
    """The layer's `forward` with its tensors on `device`, which are freed behind it."""
    import torch

    forward = layer.forward
    places = [place for module in layer.modules() for place in _places(module)]
    kept = [_like(tensor, _in_main_memory(tensor.detach(), device)) for _, _, tensor in places]

    def call(*arguments: Any, **named: Any) -> Any:
        try:
            for (held, name, _), weight in zip(places, kept, strict=True):
                held[name] = _like(weight, torch.empty_like(weight, device=device).copy_(weight, non_blocking=True))
            return forward(*arguments, **named)
        finally:
            put_back()

    def put_back() -> None:
        for (held, name, _), weight in zip(places, kept, strict=True):
            held[name] = weight

    put_back()
    places = [(held, name, None) for held, name, _ in places]  # what was on the device is not kept there
    return call


def _in_main_memory(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on the CPU, where a GPU can fetch it by itself: in pages that stay where they are."""
    tensor = tensor if tensor.device.type == "meta" else tensor.to("cpu")
    if device.type != "cuda":
        return tensor
    try:
        return tensor.pin_memory()
    except RuntimeError as error:  # more than the system lets one process pin: slower, and the same
        log.warning("the teacher's weights cannot be pinned (%s): bringing them to the GPU takes longer", error)
        return tensor


def _places(module: nn.Module) -> list[tuple[dict[str, Any], str, torch.Tensor]]:
    """Where a module holds tensors itself: in which of its dicts, by which name, and the tensor."""
    dicts = (module._parameters, module._buffers)
    return [(held, name, tensor) for held in dicts for name, tensor in held.items() if tensor is not None]


def _like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`other`, as a frozen parameter where `tensor` is one."""
    from torch import nn

    return nn.Parameter(other, requires_grad=False) if isinstance(tensor, nn.Parameter) else other


def _inside_layers(model: PreTrainedModel) -> set[nn.Module]:
    from idp.compress.forward import decoder_layers

    return {module for layer in decoder_layers(model) for module in layer.modules()}


def _fits(student: LoadedModel) -> bool:
    """Whether a second model of the student's size fits on its device, as far as that can be told."""
    found = memory.device_memory(student.device)
    if found is None:
        return True
    needed = sum(tensor.numel() * tensor.element_size() for tensor in student.model.parameters())
    return needed < found[0]
