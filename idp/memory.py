"""The peak of this process's memory, over a span of its life where the system can tell."""

from __future__ import annotations

import contextlib
import platform
import re
import resource
from pathlib import Path

PROCESS = Path("/proc/self")


def start_peak() -> None:
    """Begins a new span: the peak so far is forgotten. Elsewhere than on Linux the span is the process's whole life."""
    with contextlib.suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")  # proc(5): resets the peak resident set size


def peak_bytes() -> int:
    """The largest resident set, in bytes, since `start_peak`."""
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", (PROCESS / "status").read_text()):
            return int(found[1]) * 1024
    # Linux counts it in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
