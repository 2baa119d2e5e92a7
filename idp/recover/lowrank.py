"""A low-rank update of every layer in closed form, nothing trained (EoRA, 2410.21271; QERA, 2410.06040)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from idp import config
from idp.config import CALIBRATION, DENSE, WEIGHTS, WIDE, option
from idp.models import LoadedModel
from idp.recover.context import RepairContext, RepairResult
from idp.recover.correction import ClosedForm, corrections
from idp.recover.targets import TARGETS, check_named, check_rank, check_targets, update_numbers


@dataclass
class LowRank(ClosedForm, config.Recovery):
    rank: int = option("rank of each layer's update", minimum=1, maximum=WIDE)
    targets: list[str] = option(TARGETS)

    needs: ClassVar[frozenset[str]] = frozenset({CALIBRATION, DENSE, WEIGHTS})
    adapts: ClassVar[bool] = True

    def check(self, place: str = "recovery") -> None:
        check_named(self.targets, place)

    def check_model(self, empty: LoadedModel) -> None:
        check_targets(empty, self.targets)
        check_rank(empty, self.targets, self.rank)

    def numbers(self, empty: LoadedModel) -> int:
        return update_numbers(empty.model, self.targets, self.rank)

    def make(self, context: RepairContext) -> RepairResult:
        return RepairResult(low_rank=corrections(context, self.targets, self.rank, self.damping))
