"""What vLLM's LoRA loader takes, as its sources say (`vllm/lora/peft_helper.py`, `lora_model.py`, `config/lora.py`).

It reads `adapter_config.json` (`r`, `lora_alpha`, `target_modules`, `use_rslora`) and the names of the tensors.
Patterns of ranks and of scales it does not read: each update is scaled by `lora_alpha / r` of the whole adapter.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what `--max-lora-rank` may be; `1` is of newer versions
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NEEDED = ("r", "lora_alpha", "target_modules")
TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


def max_lora_rank(folder: Path) -> int | None:
    """What `--max-lora-rank` must be for an adapter; None where no choice is large enough.

    Args:
        folder: a LoRA adapter in PEFT's format.
    """
    rank = max([_config(folder).get("r", 0), *(shape[0] for shape in _shapes(folder, "A").values())])
    return next((choice for choice in RANKS[1:] if choice >= rank), None)


def faults(folder: Path) -> list[str]:
    """What of an adapter vLLM would refuse, or would not compute as PEFT does; empty where it loads.

    Args:
        folder: a LoRA adapter in PEFT's format.
    """
    config = _config(folder)
    found = [f"{CONFIG} has no {name}" for name in NEEDED if config.get(name) is None]
    if config.get("bias", "none") != "none":
        found.append(f"it trains biases (bias={config['bias']})")
    if config.get("modules_to_save"):
        found.append(f"it holds whole modules ({', '.join(config['modules_to_save'])})")
    if config.get("use_dora"):
        found.append("it is a DoRA adapter")
    if not (folder / WEIGHTS).is_file():
        return [*found, f"there is no {WEIGHTS}"]
    found += _faults_of_tensors(folder, config)
    if found:
        return found
    if max_lora_rank(folder) is None:
        found.append(f"its rank is above {RANKS[-1]}, the largest --max-lora-rank")
    if (other := _scaled_otherwise(folder, config)) is not None:
        found.append(f"{other} has a scale of its own, and vLLM uses lora_alpha / r for all")
    return found


def _faults_of_tensors(folder: Path, config: dict[str, Any]) -> list[str]:
    """Names that its parser does not know, and sides without their counterparts."""
    unknown = [name for name in _entries(folder) if not TENSOR.fullmatch(name)]
    if unknown and not config.get("use_dora"):
        return [f"it does not know tensors such as {unknown[0]}"]
    sides = [set(_shapes(folder, side)) for side in "AB"]
    return [f"{module} has one side of its update alone" for module in sorted(sides[0] ^ sides[1])[:1]]


def _scaled_otherwise(folder: Path, config: dict[str, Any]) -> str | None:
    """The first module that PEFT scales by another factor than the adapter's own `lora_alpha / r`."""
    root = math.sqrt if config.get("use_rslora") else float
    own = config["lora_alpha"] / root(config["r"])
    for module in _shapes(folder, "A"):
        rank = _of_pattern(config.get("rank_pattern"), module, config["r"])
        alpha = _of_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
        if not math.isclose(alpha / root(rank), own):
            return module
    return None


def _of_pattern(pattern: dict[str, Any] | None, module: str, default: float) -> float:
    """The value that one of PEFT's patterns has for a module: keys are expressions for the end of its name."""
    return next((value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))


def _entries(folder: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _shapes(folder: Path, side: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the updates' A or B by module."""
    matched = ((TENSOR.fullmatch(name), shape) for name, shape in _entries(folder).items())
    return {match["module"]: shape for match, shape in matched if match and match["side"] == side}
