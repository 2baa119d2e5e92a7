"""Memory: the peaks of this process and of its accelerators over a span of its life, and giving back what is free."""

from __future__ import annotations

import contextlib
import gc
import platform
import re
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PROCESS = Path("/proc/self")
_of_runs_alone = False
_KEPT: dict[str, int] = {}  # peaks of this span from before an accelerator's counters were set back


def start_peak() -> None:
    """Begins a new span: the peaks so far are forgotten, the process's and those of its accelerators.

    Elsewhere than on Linux the process's span is its whole life.
    """
    with contextlib.suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")  # proc(5): resets the peak resident set size
    _KEPT.clear()
    for module, device in _in_use():
        module.reset_peak_memory_stats(device)


def keep_peaks(others: dict[str, int] | None = None) -> None:
    """Remembers accelerators' peaks of this span: its own, before their counters are set back within it, or those of
    `others`, processes that work for this one."""
    for device, peak in (device_peaks() if others is None else others).items():
        _KEPT[device] = max(peak, _KEPT.get(device, 0))


def peak_bytes() -> int:
    """The largest resident set, in bytes, since `start_peak`."""
    if (found := _status("VmHWM")) is not None:
        return found
    # Linux counts it in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def private_bytes() -> int | None:
    """What this process holds in memory that is no file's: pages of a mapped file are shared, and the system may drop
    them. None where the system cannot tell (elsewhere than on Linux)."""
    return _status("RssAnon")


def device_peaks() -> dict[str, int]:
    """The most bytes that tensors took on each accelerator since `start_peak`, by device such as `cuda:0`.

    Only accelerators that this process uses; empty on a CPU.
    """
    found = dict(_KEPT)
    for module, device in _in_use():
        found[device] = max(found.get(device, 0), module.max_memory_allocated(device))
    return {device: peak for device, peak in found.items() if peak}


def device_memory(device: torch.device | str) -> tuple[int, int] | None:
    """Free and total bytes of a device, memory that this process has cached and does not use counted as free.

    None where it cannot be told: on a CPU, or a device that is not here.
    """
    import torch

    place = torch.device(device)
    module = getattr(torch, place.type, None)
    if module is None or place.type == "cpu" or not _available(module) or not hasattr(module, "mem_get_info"):
        return None
    free, total = module.mem_get_info(place)
    return free + max(0, module.memory_reserved(place) - module.memory_allocated(place)), total


def of_runs_alone() -> None:
    """Says that this process makes runs and does nothing else.

    What is in memory after the first `release`, before any model is, are then the libraries: later ones overlook their
    millions of objects, which takes half a second each time. In somebody else's process a model may be among them.
    """
    global _of_runs_alone
    _of_runs_alone = True


def release() -> None:
    """Frees what nothing refers to any more and gives the accelerators' caches back; safe everywhere."""
    gc.collect()  # a model that was opened is a ring of references: counting them never frees it
    if _of_runs_alone and not gc.get_freeze_count():
        gc.freeze()
    if "torch" not in sys.modules:
        return
    for module in _accelerators():
        module.empty_cache()


def _accelerators() -> list[Any]:
    """torch's modules of the accelerators that this process has begun to use.

    One that it has not used holds nothing; asking it would begin to, which takes some 400 MB of a GPU.
    """
    import torch

    modules = [getattr(torch, name, None) for name in ("cuda", "xpu", "mps")]
    return [module for module in modules if _available(module) and _begun(module)]


def _in_use() -> list[tuple[Any, str]]:
    """Each accelerator of this process with a peak of its own: torch's module of its kind, and the device."""
    if "torch" not in sys.modules:
        return []
    return [
        (module, f"{module.__name__.rpartition('.')[2]}:{number}")
        for module in _accelerators()
        if hasattr(module, "max_memory_allocated")
        for number in range(module.device_count())
    ]


def _available(module: Any) -> bool:
    return module is not None and getattr(module, "is_available", lambda: False)()


def _begun(module: Any) -> bool:
    return getattr(module, "is_initialized", lambda: True)()


def _status(name: str) -> int | None:
    """A line of the process's status (proc(5)), in bytes."""
    with contextlib.suppress(OSError):
        if found := re.search(rf"^{name}:\s+(\d+) kB", (PROCESS / "status").read_text(), flags=re.M):
            return int(found[1]) * 1024
    return None
