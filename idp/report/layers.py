"""What stored products say of each layer: sparsity and weight change, and likeness to the dense model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from idp.records.measured import ModelScores
from idp.records.reading import stores

SIMILARITY = Path("analysis", "similarity.json")
SIMILARITY_SCHEMA = 1


def weights_by_layer(model: ModelScores) -> dict[str, dict[str, Any]]:
    """Each compressed linear layer's figures, by name: `sparsity`, `reconstruction_error`, `bits_per_weight`, ...

    Empty where the model is dense, or its product is not in the store any more.
    """
    key = model.keys.get("compress")
    if key is None:
        return {}
    for store in [place for folder in model.folders for place in stores(model.store, folder)]:
        try:
            return json.loads((store / "compress" / key / "weights.json").read_text(encoding="utf-8")).get("layers", {})
        except (OSError, ValueError, AttributeError):
            continue
    return {}


def depth_and_part(name: str) -> tuple[int, str] | None:
    """`model.layers.7.self_attn.q_proj` -> (7, q_proj); None for a layer outside the blocks."""
    found = re.search(r"\.(\d+)\.(?:.*\.)?([^.]+)$", name)
    return (int(found[1]), found[2]) if found else None


def similarity(model: ModelScores) -> dict[str, Any] | None:
    """Likeness to the dense model of what `python -m idp.analyze similarity` wrote beside one of the model's runs.

    `layers`, of `attention` and `activation` each measure's value by layer, and as `control` the same of a prompt
    that was not trained, where the model has one. None where nothing was written for it.
    """
    for folder in model.folders:
        try:
            found = json.loads((folder / SIMILARITY).read_text(encoding="utf-8"))
            if found["schema"] == SIMILARITY_SCHEMA and model.role in found["models"]:
                control = found["models"].get("untrained_prompt") if model.role == "repaired" else None
                return {"layers": found["layers"], **found["models"][model.role], "control": control}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
