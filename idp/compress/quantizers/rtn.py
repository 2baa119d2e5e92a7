"""Rounding to nearest: each weight to the next value of its group's grid."""

from __future__ import annotations

from typing import Any

from idp.config import Quantizer


class RoundToNearest(Quantizer):
    def modifiers(self, quantization: Any, scheme: dict[str, Any], model: Any, keep_zeros: bool) -> list[Any]:
        from llmcompressor.modifiers.quantization import QuantizationModifier

        return [QuantizationModifier(**scheme)]
