"""The weight side of a repair on a model of its first layers alone: what is for other layers is left out."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from idp.errors import UserError
from idp.models import LoadedModel
from idp.recover import values
from idp.recover.weight_side import WeightSide
from idp.store import write_json

if TYPE_CHECKING:
    import torch

WITHIN = "base_model.model."  # what PEFT puts before the names of layers
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def attach(side: WeightSide, loaded: LoadedModel) -> LoadedModel:
    """As `WeightSide.attach`, on a model that has the first of the repaired model's layers.

    Raises:
        UserError: a part that only its kind can put on a model.
    """
    if side.own is not None or side.scales is not None:
        raise UserError(
            f"recovery={side.kind}: its weight side is in a form of its own, which does not go on its first layers"
        )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        adapter = _adapter(side.adapter, loaded, folder / "adapter") if side.adapter is not None else None
        new = _values(side.values, loaded, folder / "values") if side.values is not None else None
        return replace(side, adapter=adapter, values=new).attach(loaded)


def _adapter(stored: Path, loaded: LoadedModel, folder: Path) -> Path | None:
    """The updates of the layers that are there; None where there are none."""
    from safetensors.torch import load_file, save_file

    head = loaded.model.get_output_embeddings()  # stands in for one, and is never used
    here = {name for name, module in loaded.model.named_modules() if module is not head}
    kept: dict[str, torch.Tensor] = {}
    layers: set[str] = set()
    for name, tensor in load_file(stored / WEIGHTS).items():
        layer = name.removeprefix(WITHIN).partition(".lora_")[0]
        if layer in here:
            kept[name] = tensor
            layers.add(layer)
    if not kept:
        return None
    folder.mkdir()
    save_file(kept, folder / WEIGHTS)
    config = json.loads((stored / CONFIG).read_text(encoding="utf-8"))
    if isinstance(config["target_modules"], list):
        ends = config["target_modules"]
        config["target_modules"] = [end for end in ends if any(f".{layer}".endswith(f".{end}") for layer in layers)]
    write_json(folder / CONFIG, config)
    return folder


def _values(stored: Path, loaded: LoadedModel, folder: Path) -> Path | None:
    """The values of the parameters that are there; None where there are none."""
    here = dict(loaded.model.named_parameters())
    kept = {name: value for name, value in values.load(stored).items() if name in here}
    if not kept:
        return None
    values.save(kept, folder)
    return folder
