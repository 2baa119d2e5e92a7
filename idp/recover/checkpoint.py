"""What work goes on from after a kill: tensors and a few values, whole and unchanged, or nothing at all."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.store import hash_file, sealed, unsealed, write_json
from idp.store.modes import as_its_folder

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

STATE = "state.json"


def save_checkpoint(folder: Path, name: str, tensors: dict[str, torch.Tensor], **values: Any) -> None:
    """Writes tensors as `<name>.safetensors`, then the JSON that makes them the current ones; drops those before."""
    file = write_tensors(folder / f"{name}.safetensors", tensors)
    write_json(folder / STATE, sealed({"file": file.name, "sha256": hash_file(file), **values}))
    for old in folder.glob("*.safetensors"):
        if old.name != file.name:
            old.unlink()


def load_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """The tensors and values that were saved last; None, with a warning, where they are damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / STATE).exists():
        return None
    try:
        values = unsealed(json.loads((folder / STATE).read_text(encoding="utf-8")))
        file = folder / values.pop("file")
        if hash_file(file) != values.pop("sha256"):
            raise ValueError(f"{file.name} does not match its hash")
        return load_file(file), values
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        log.warning("%s: a checkpoint that is damaged (%s): this part starts anew", folder, error)
        return None


def write_tensors(file: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Writes tensors so that a reader sees all of them or none."""
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)
    as_its_folder(temporary)  # so that another user of a shared store can go on from it
    return temporary.replace(file)
