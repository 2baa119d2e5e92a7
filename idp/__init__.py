"""idp: how much of a compressed language model's damage does each cheap repair bring back, and at what cost?

`idp.load(record_or_folder)` gives a run's model in memory: see `idp.api`. `idp.repair(model, tokenizer, ...)` makes a
repair of a model in memory: see `idp.repairing`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from idp import ends

if TYPE_CHECKING:
    from idp.api import load as load
    from idp.repairing import repair as repair

# cuBLAS reads it once, when it is first used: workspaces of a fixed size, from which its results are the same bits.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

if ends.is_command():
    ends.quietly()  # first of all: a command may be interrupted while it imports

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":  # imported when it is used: `import idp` takes no time
        from idp.api import load

        return load
    if name == "repair":
        from idp.repairing import repair

        return repair
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "load", "repair"]
