"""AWQ (Lin et al., 2306.00978): columns with large inputs are scaled up, then rounded to nearest."""

from __future__ import annotations

from typing import Any, ClassVar

from idp.config import Quantizer
from idp.errors import UserError


class AWQ(Quantizer):
    reads_text: ClassVar[bool] = True
    operations: ClassVar[float] = 29.0  # every layer's scales are searched on a grid of 20, each time by running it

    def check_model(self, model: Any) -> None:
        from idp.compress import experts
        from idp.compress.terminal import quiet

        if experts.stacked_experts(model):
            raise UserError(
                f"compressor.quantization.method=awq: {type(model).__name__} is a mixture of experts, in which its"
                " scaling is not known to leave the router's input as it is; use gptq or rtn"
            )
        with quiet():
            from idp.compress.awq import check_architecture

            check_architecture(model)

    def modifiers(self, quantization: Any, scheme: dict[str, Any], model: Any, keep_zeros: bool) -> list[Any]:
        from llmcompressor.modifiers.quantization import QuantizationModifier

        from idp.compress.awq import RecordingAWQModifier, mappings

        scaling = RecordingAWQModifier(mappings=mappings(model)).behind_pruning(keep_zeros)
        return [scaling, QuantizationModifier(**scheme)]
