"""SparseGPT (Frantar and Alistarh, 2301.00774): pruned column by column, the columns behind make up for the error."""

from __future__ import annotations

from typing import Any, ClassVar

from idp.compress.masks import BLOCK_COLUMNS, mask_structure
from idp.config import Pruner, n_of_m


class SparseGPT(Pruner):
    reads_text: ClassVar[bool] = True

    def modifier(self, sparsity: Any, layers: dict[str, Any], behind: list[Any]) -> Any:
        from llmcompressor.modifiers.pruning import SparseGPTModifier

        from idp.compress.joint import MaskedGPTQModifier, SharingSparseGPTModifier

        block = BLOCK_COLUMNS
        if sparsity.pattern:  # a group of M must not lie across two blocks
            _, of = n_of_m(sparsity.pattern)
            block = of * max(1, BLOCK_COLUMNS // of)
        structure = mask_structure(sparsity.pattern)
        options = {
            "sparsity": sparsity.level,
            "mask_structure": structure,
            "targets": list(layers),
            "block_size": block,
        }
        for modifier in behind:
            if isinstance(modifier, MaskedGPTQModifier):
                return SharingSparseGPTModifier(**options).share(modifier)
        return SparseGPTModifier(**options)
