"""Whether a checkpoint is quantised, from what lies beside its weights and from how its tensors are called."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from idp.errors import UserError
from idp.models.weight_files import PACKED
from idp.store import read_json

METHODS = ("compressed-tensors", "gptq", "awq")  # those that compressor=external reads
READ = "compressed-tensors, gptq, awq, GGUF files and plain weights"
# Where it is described if config.json does not: AutoGPTQ's file and AutoAWQ's.
BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


def described(config: dict[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """How a checkpoint says that it is quantised, with `quant_method` always there; empty where it says nothing.

    Args:
        config: its config.json.
        folder: where it lies, if other files beside it may say so.

    Raises:
        UserError: a file beside it is not JSON.
    """
    found = _in_config(config)
    for name, method in BESIDE.items():
        if not found and folder is not None and (folder / name).is_file():
            found = {"quant_method": method, **read_json(folder / name)}
    return found


def refuse_unread(where: str, described: dict[str, Any]) -> None:
    """Refuses a method that compressor=external does not read; `described` is as the function of that name gives it.

    Raises:
        UserError: says which are read.
    """
    if described and described["quant_method"] not in METHODS:
        raise UserError(f"{where}: quant_method={described['quant_method']} is not read; these are: {READ}")


def refuse(where: str, path: str, config: dict[str, Any], files: Iterable[str], tensors: Iterable[str] = ()) -> None:
    """Refuses a checkpoint that is to be the dense model and is compressed.

    Args:
        where: what the line begins with.
        path: what `compressor.path` would be.
        config: its config.json, or the hub's summary of it.
        files: the names of the files beside it.
        tensors: the names of its tensors, where they are known.

    Raises:
        UserError: it is; says how it can be used.
    """
    method = _in_config(config).get("quant_method")
    method = method or next((BESIDE[name] for name in files if name in BESIDE), None)
    if method is None:
        if (packed := next((name for name in tensors if PACKED.search(name)), None)) is None:
            return
        raise UserError(
            f"{where} is already compressed: {packed} is packed, and no config says how; take the dense model"
        )
    if method in METHODS:
        raise UserError(
            f"{where} is already compressed: use compressor=external compressor.path={path} ({method}), with the dense"
            " model that it was made from as model"
        )
    raise UserError(
        f"{where} is already compressed: {method}, which compressor=external compressor.path=... does not read (only"
        f" {READ}); take the dense model"
    )


def _in_config(config: dict[str, Any]) -> dict[str, Any]:
    """What config.json says of it, of the whole model or of its text part."""
    for part in (config, config.get("text_config")):
        for name in ("quantization_config", "compression_config"):
            found = part.get(name) if isinstance(part, dict) else None
            if isinstance(found, dict) and found:
                bitsandbytes = any(found.get(option) for option in ("load_in_8bit", "load_in_4bit"))
                known = {"quant_method": "bitsandbytes"} if bitsandbytes else {"quant_method": "an unnamed method"}
                return {**known, **{key: value for key, value in found.items() if value is not None}}
    return {}
