"""What the store keeps of a compressed model: quantised layers as integers and scales, as an export has them.

Its folder is a checkpoint that transformers itself opens. `idp.models.open_model` opens it with plain weights, which
are those that were saved to the last bit. What does not come back so stays dense.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.errors import UserError
from idp.models import weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from idp.config import Claims

log = logging.getLogger(__name__)


def save(
    model: PreTrainedModel,
    folder: Path,
    grids: dict[str, torch.Tensor],
    claims: Claims,
) -> dict[str, int]:
    """Writes a frozen model, its experts stacked, with every layer packed that has a grid and comes back exactly.

    Args:
        model: the model.
        folder: where to.
        grids: as `idp.compress.freeze.freeze` gives them; empty where nothing was quantised.
        claims: what the grids are.

    Returns:
        how many layers are `packed`, and how many quantised ones are kept `dense`.
    """
    from idp.compress import experts, pack

    layers = pack.packed_layers(grids)
    if not layers:
        weights.save(model, folder)
        return {"packed": 0, "dense": 0}
    dense: list[str] = []
    about: dict[str, Any] = {"bits": claims.bits, "symmetric": claims.symmetric}
    places = experts.places(model)
    try:
        state = pack.packed_state(model, grids, **about, places=places, refused=dense)
    except UserError as error:  # a mixture of experts that no reader of packed weights would read right
        log.warning("compress: kept as plain weights: %s", error)
        weights.save(model, folder)
        return {"packed": 0, "dense": len(layers)}
    if dense:
        log.warning(
            "compress: %d of %d quantised layers are kept as plain weights, since packed they would not be the same to"
            " the last bit, the first of them %s",
            len(dense),
            len(layers),
            dense[0],
        )
    weights.save(model, folder, state=state)
    if len(dense) < len(layers):
        packed = {name: grid for name, grid in grids.items() if name.rpartition(".")[0] not in dense}
        described = {**about, "group_size": claims.group_size, "actorder": claims.actorder}
        pack.describe(folder, model, packed, **described)
    return {"packed": len(layers) - len(dense), "dense": len(dense)}
