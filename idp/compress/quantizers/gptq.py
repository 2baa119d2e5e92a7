"""GPTQ (Frantar et al., 2210.17323): rounded column by column, the columns behind make up for the error."""

from __future__ import annotations

from typing import Any, ClassVar

from idp.compress.masks import BLOCK_COLUMNS
from idp.config import Quantizer


class GPTQ(Quantizer):
    reads_text: ClassVar[bool] = True
    orders: ClassVar[bool] = True

    def modifiers(self, quantization: Any, scheme: dict[str, Any], model: Any, keep_zeros: bool) -> list[Any]:
        from llmcompressor.modifiers.gptq import GPTQModifier

        from idp.compress.joint import MaskedGPTQModifier

        modifier = MaskedGPTQModifier if keep_zeros else GPTQModifier
        return [modifier(**scheme, actorder=quantization.actorder, block_size=BLOCK_COLUMNS)]
