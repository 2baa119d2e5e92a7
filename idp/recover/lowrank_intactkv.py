"""Both halves without training: the closed form in the weights, and the dense model's states of the first token."""

from __future__ import annotations

from dataclasses import dataclass, field

from idp.config import WEIGHTS
from idp.recover.hard_prompt import HardPrompt
from idp.recover.lowrank import LowRank


@dataclass
class LowRankIntactKV(HardPrompt):
    lowrank: LowRank = field(default_factory=LowRank)

    @property
    def beneath(self) -> LowRank:
        """What recovery=lowrank makes, and shares with it."""
        return self.lowrank

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {WEIGHTS}  # those that the closed form is put into

    def check(self, place: str = "recovery") -> None:
        self.lowrank.check(f"{place}.lowrank")
        super().check(place)
