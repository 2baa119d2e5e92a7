"""What `model.device`, `model.dtype` and `evaluation.processes` mean on this machine."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from idp.config import Model
from idp.errors import UserError

if TYPE_CHECKING:
    import torch


def device_of(config: Model) -> torch.device:
    """The device that `model.device` means on this machine."""
    import torch

    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
    except RuntimeError as error:
        raise UserError(f"model.device={config.device}: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"model.device={config.device}: no CUDA device here; use model.device=auto")
    if config.device_map and (device.type == "cpu" or device.index is not None):
        raise UserError(
            f"model.device={config.device}: model.device_map={config.device_map} spreads the model over all devices;"
            " use model.device=auto, or model.device_map=null for this one (CUDA_VISIBLE_DEVICES says which are seen)"
        )
    return device


def make_current(device: torch.device) -> None:
    """Makes a device what libraries mean by an accelerator without a number; some of their kernels know no other."""
    import torch

    if device.type != "cpu" and device.index is not None:
        torch.accelerator.set_device_index(device.index)


def keep_freed_memory() -> None:
    """Lets glibc keep what large tensors leave behind, for the next ones.

    By default it hands every large block back to the system and asks for a fresh one at the next layer, whose pages
    must then be mapped and zeroed again.
    """
    import ctypes

    trim_threshold, mmap_threshold, large = -1, -3, 1 << 30  # mallopt(3); larger values are refused
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, large)
        mallopt(trim_threshold, large)


def devices(config: Model, processes: int | None) -> list[str]:
    """The device of each evaluation process: with `processes` null one per GPU, or a single one on a CPU.

    Raises:
        UserError: more processes than GPUs, or several with a model that is itself spread over devices.
    """
    import torch

    device = device_of(config)
    if config.device_map:
        if (processes or 1) > 1:
            raise UserError(
                f"evaluation.processes={processes}: model.device_map={config.device_map} spreads one model over the"
                " devices; use one process"
            )
        return [str(device)]
    gpus = torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1
    if device.type == "cuda" and processes is not None and processes > gpus:
        raise UserError(f"evaluation.processes={processes}: there are {gpus} GPUs to use")
    wanted = processes or gpus
    return (
        [f"cuda:{number}" for number in range(wanted)]
        if device.type == "cuda" and wanted > 1
        else [str(device)] * wanted
    )


def dtype_of(config: Model) -> torch.dtype:
    """The dtype that `model.dtype` means on this machine: `auto` is bfloat16 where the hardware multiplies in it.

    GPUs that do not (V100, T4) take float16, other processors float32.
    """
    import torch

    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    if device_of(config).type == "cuda":  # older GPUs only emulate it, slowly
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    has = (
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return torch.bfloat16 if any(has) else torch.float32


def numerics(config: Model) -> dict[str, str]:
    """What of the machine decides a stage's numbers: dtype and kind of device. Part of every later stage's key."""
    return {"dtype": str(dtype_of(config)).removeprefix("torch."), "device": device_of(config).type}
