"""Magnitude pruning: the smallest weights become zero, whatever the inputs are."""

from __future__ import annotations

from typing import Any

from idp.config import Pruner


class Magnitude(Pruner):
    def modifier(self, sparsity: Any, layers: dict[str, Any], behind: list[Any]) -> Any:
        from idp.compress.magnitude import MagnitudeModifier

        return MagnitudeModifier(names=list(layers), level=sparsity.level, pattern=sparsity.pattern)
