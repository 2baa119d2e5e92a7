"""Both halves: a LoRA adapter on the compressed model, and IDP's prompts trained on the model that it gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from idp.recover.idp import Idp
from idp.recover.lora import Lora


@dataclass
class LoraIdp(Idp):
    method: ClassVar[str] = "lora_idp"

    lora: Lora = field(default_factory=Lora)

    @property
    def beneath(self) -> Lora:
        """What recovery=lora makes, and shares with it."""
        return self.lora

    def check(self, place: str = "recovery") -> None:
        self.lora.check(f"{place}.lora")
        super().check(place)
