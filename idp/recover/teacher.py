"""The dense model beside the one that learns from it: on the same device, or layer by layer out of main memory.

Two models of 7 billion parameters in bfloat16 are 27 GB. A teacher that is streamed takes the place of one decoder
layer on the device (400 MB); each step brings all of them over once more (13.5 GB: half a second at 25 GB/s). What it
says is the same, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
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

    inside = {id(tensor) for tensor in _layer_tensors(teacher)}
    theirs = dict(student.named_parameters())
    for name, own in teacher.named_parameters():
        other = theirs.get(name)
        if id(own) in inside or other is None or "meta" in (own.device.type, other.device.type):
            continue
        if own.shape == other.shape and own.dtype == other.dtype and torch.equal(own, other.to(own.device)):
            own.data = other.data


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

    layers = decoder_layers(model)
    for layer in layers:
        layer.forward = _brought(layer, device)
    inside = {id(tensor) for layer in layers for tensor in _tensors(layer)}
    for tensor in _tensors(model):
        if id(tensor) not in inside:
            tensor.data = tensor.data.to(device)
    setattr(model, STREAMED, True)


def _brought(layer: nn.Module, device: torch.device) -> Callable:
    """The layer's `forward` with its tensors on `device`, which are freed behind it."""
    import torch

    forward, tensors = layer.forward, list(_tensors(layer))
    kept = [_in_main_memory(tensor.data, device) for tensor in tensors]

    def call(*arguments: Any, **named: Any) -> Any:
        try:
            for tensor, own in zip(tensors, kept, strict=True):
                tensor.data = torch.empty_like(own, device=device).copy_(own, non_blocking=True)
            return forward(*arguments, **named)
        finally:
            put_back()

    def put_back() -> None:
        for tensor, own in zip(tensors, kept, strict=True):
            tensor.data = own

    put_back()
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


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _layer_tensors(model: PreTrainedModel) -> Iterator[torch.Tensor]:
    from idp.compress.forward import decoder_layers

    for layer in decoder_layers(model):
        yield from _tensors(layer)


def _fits(student: LoadedModel) -> bool:
    """Whether a second model of the student's size fits on its device, as far as that can be told."""
    found = memory.device_memory(student.device)
    if found is None:
        return True
    needed = sum(tensor.numel() * tensor.element_size() for tensor in student.model.parameters())
    return needed < found[0]
