"""What an adapter of PEFT starts from, when that is not nothing: a given update of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from idp.errors import UserError
from idp.recover.closed_form import scaled
from idp.recover.correction import Update
from idp.recover.targets import matrix

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER = "default"


def begin(adapted: PeftModel, start: Mapping[str, Update]) -> None:
    """Gives each adapted layer the update W + B A to start from; the model then computes with that.

    A direction that an update leaves at zero starts as PEFT's do, at random in A and at zero in B: with zeros in both
    it would have no gradient. DoRA's magnitudes become the sizes of the rows of W + B A, so that they change nothing.

    Args:
        adapted: the model with fresh adapters.
        start: by the layer's name A [rank, in] and B [out, rank].
    """
    import torch

    model = adapted.get_base_model()
    with torch.no_grad():
        for name, (a, b) in start.items():
            layer = model.get_submodule(name)
            first, second = (side[ADAPTER].weight for side in (layer.lora_A, layer.lora_B))
            a, b = scaled(a.to(first.device), b.to(first.device), layer.scaling[ADAPTER])
            moved = b.norm(dim=0) > 0
            first[moved] = a[moved].to(first)
            second.copy_(b)
            if magnitude := _magnitude(layer):
                magnitude.update_layer(
                    base_layer=layer.get_base_layer(), lora_A=first, lora_B=second, scaling=layer.scaling[ADAPTER]
                )


def check_directions(adapted: PeftModel) -> None:
    """Refuses DoRA where a row of a weight is zero: it has no direction, and its size of zero would divide.

    Raises:
        UserError: naming the layer.
    """
    for name, layer in adapted.get_base_model().named_modules():
        if (magnitude := _magnitude(layer)) and bool((magnitude.weight == 0).any()):
            rows = int((magnitude.weight == 0).sum())
            raise UserError(
                f"recovery.dora=true: {rows} of {len(matrix(layer.get_base_layer()))} rows of {name} are zero and have"
                " no direction; use recovery.dora=false"
            )


def _magnitude(layer: Any) -> Any:
    """DoRA's part of an adapted layer; None where there is none."""
    magnitudes = getattr(layer, "lora_magnitude_vector", None)
    return magnitudes[ADAPTER] if magnitudes is not None and ADAPTER in magnitudes else None
