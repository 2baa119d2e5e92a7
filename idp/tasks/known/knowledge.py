"""Knowledge under compression, after LLM-KICK (2310.01382): facts asked with and without their passage."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from idp.config import Suite


class Knowledge(Suite):
    # Their functions are part of their scores' keys, by module and name.
    definitions: ClassVar = Path(__file__).parents[2] / "evaluate" / "own_tasks"
