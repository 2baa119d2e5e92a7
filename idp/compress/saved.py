"""The measure of a model folder: its weights as they lie on disk, which is what later stages evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.compress.measure import measure_weights, worst
from idp.errors import UserError
from idp.models.unpacking import tensors
from idp.models.weight_files import SINGLE, WeightFiles

if TYPE_CHECKING:
    import torch
    from torch import nn

    from idp.compress.experts import Place


class SavedWeights:
    """The tensors of a model folder, read and unpacked one at a time, so that no second model is held in memory.

    Args:
        folder: weights as safetensors.
        places: where a weight is that is not saved under its own name, as `idp.compress.experts.places` says it.
    """

    def __init__(self, folder: Path, places: dict[str, Place] | None = None):
        files = WeightFiles(folder, str(folder))
        if not files.files:
            raise UserError(f"{folder}: {SINGLE} is missing")
        self._places = tensors(files)
        self._inside = places or {}

    def __getitem__(self, name: str) -> torch.Tensor:
        place = self._inside.get(name)
        saved = place.tensor if place else name
        if saved not in self._places:
            raise UserError(f"the saved model has no tensor {saved} among its {len(self._places)}")
        return self._places[saved][place.index if place and place.index else ...]


def measure_saved(
    folder: Path,
    dense: nn.Module,
    layers: dict[str, nn.Linear],
    inputs: torch.Tensor,
    scales: dict[str, torch.Tensor] | None = None,
    places: dict[str, Place] | None = None,
    **grid: Any,
) -> dict[str, Any]:
    """`idp.compress.measure.measure_weights` of a saved model, with each layer's reconstruction error.

    Args:
        folder: the compressed model: plain weights, config and tokenizer.
        dense: the dense model.
        layers: its layers that were compressed.
        inputs: calibration blocks [samples, tokens].
        scales: as `idp.compress.reconstruction.reconstruction_errors` takes them.
        places: as `SavedWeights` takes them.
        grid: `bits`, `group_size`, `symmetric` and `pattern`.
    """
    from idp.compress.reconstruction import reconstruction_errors

    saved = SavedWeights(folder, places)
    parameters = sum(parameter.numel() for parameter in dense.parameters())
    weights = measure_weights(
        ((name, saved[f"{name}.weight"].to(layer.weight.device)) for name, layer in layers.items()), **grid
    )
    errors = reconstruction_errors(dense, layers, saved, inputs, scales)
    for name, error in errors.items():
        weights["layers"][name]["reconstruction_error"] = error
    weights["reconstruction_error"] = sum(errors.values()) / max(len(errors), 1)
    weights["worst"] = worst(weights["layers"])
    return {"parameters": parameters, **weights}
