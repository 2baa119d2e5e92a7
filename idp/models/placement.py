"""Where the weights of a model go that is spread over several devices; refused where they do not fit on them.

accelerate, which spreads them, puts what does not fit into main memory or on disk and fetches it at each forward pass:
dozens of times slower, and weights that are not where they are used cannot be compressed, adapted or trained against.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from idp import memory
from idp.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

KEPT = 0.1  # of each device's free memory, for activations and caches
GIGABYTE = 1e9
DEVICES = ("cpu", "disk", "meta")  # where a weight is that has been offloaded
TODO = "use model.dtype=bfloat16, a smaller model, or more or larger GPUs"


def device_map(
    way: str, device: torch.device, shape: PretrainedConfig, dtype: torch.dtype, trust_remote_code: bool = False
) -> dict[str, torch.device]:
    """The device of every part of a model, by the part's name; nothing is loaded.

    Args:
        way: `auto` or `balanced` (the same: as much on each device), `balanced_low_0` or `sequential`, as
            transformers takes `device_map`.
        device: of the kind that the model is spread over; its number does not matter.
        shape: the model's config.
        dtype: of its weights.
        trust_remote_code: whether the config's own code may run.

    Raises:
        UserError: the weights do not fit on the devices as they are now.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.integrations.accelerate import get_balanced_memory, infer_auto_device_map

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(shape, dtype=dtype, trust_remote_code=trust_remote_code)
    empty.tie_weights()
    free = {number: int((1 - KEPT) * bytes_) for number, bytes_ in free_memory(device).items()}
    whole = set(empty._no_split_modules or ())
    with _silent():
        room = free
        if way != "sequential":
            low = way == "balanced_low_0"
            room = get_balanced_memory(empty, max_memory=dict(free), no_split_module_classes=whole, low_zero=low)
            room = {number: room[number] for number in free}
        found = infer_auto_device_map(empty, max_memory=dict(room), no_split_module_classes=whole)
    if any(place in DEVICES for place in found.values()):
        need = sum(tensor.nbytes for tensor in {id(p): p for p in empty.parameters()}.values())
        there = " and ".join(f"{bytes_ / GIGABYTE:.3g} GB on {device.type}:{n}" for n, bytes_ in free.items())
        raise UserError(
            f"model.device_map={way}: the weights need {need / GIGABYTE:.3g} GB in {_named(dtype)} and room for one"
            f" more layer, and there are {there} (a tenth of what is free is left for activations); {TODO}"
        )
    return {name: torch.device(device.type, number) for name, number in found.items()}


def free_memory(device: torch.device) -> dict[int, int]:
    """Bytes that are free on each device of a kind, by its number."""
    import torch

    memory.release()
    found = {
        number: memory.device_memory(torch.device(device.type, number))
        for number in range(getattr(torch, device.type).device_count())
    }
    return {number: room[0] for number, room in found.items() if room is not None}


def refuse_offloaded(model: PreTrainedModel, way: str | None) -> None:
    """Refuses a model of which weights are in main memory or on disk while others are on devices.

    Raises:
        UserError: names the first part.
    """
    places: dict[str, Any] = getattr(model, "hf_device_map", None) or {}
    left = [name for name, place in places.items() if str(place) in DEVICES]
    left += [name for name, tensor in model.named_parameters() if tensor.device.type == "meta"]
    if left and (len(set(map(str, places.values()))) > 1 or places.get("") in ("disk", "meta")):
        raise UserError(
            f"model.device_map={way}: the devices' memory does not hold all weights, {left[0] or 'the model'} is left"
            f" in main memory or on disk; {TODO}"
        )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """transformers warns of each device that it would not have chosen by itself."""
    loggers = [
        logging.getLogger(name) for name in ("accelerate.utils.modeling", "transformers.integrations.accelerate")
    ]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        yield
    finally:
        for logger, was in zip(loggers, before, strict=True):
            logger.disabled = was


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
