"""Wanda (Sun et al., 2306.11695): in each row the weights with the smallest `|W_ij| * ||X_j||` become zero."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from idp.compress.masks import mask_structure
from idp.config import Pruner


class Wanda(Pruner):
    reads_text: ClassVar[bool] = True

    def modifier(self, sparsity: Any, layers: dict[str, Any], behind: list[Any]) -> Any:
        from llmcompressor.modifiers.pruning import WandaPruningModifier

        # It rounds the count per row down; the half keeps a float's last bit from taking one more off.
        levels = [
            (math.ceil(sparsity.level * layer.in_features - 1e-9) + 0.5) / layer.in_features
            for layer in layers.values()
        ]
        structure = mask_structure(sparsity.pattern)
        return WandaPruningModifier(sparsity=levels, mask_structure=structure, targets=list(layers))
