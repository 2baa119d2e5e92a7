"""Prompts trained alone, as prompt tuning trains one, each from its own start and on its own order of the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from idp import config
from idp.recover.context import RepairContext, RepairResult
from idp.recover.tuning import tune_each

if TYPE_CHECKING:
    from idp.recover.idp import Idp


@dataclass
class IndependentBank(config.Bank):
    trains_each: ClassVar[bool] = True

    def make(self, recovery: Idp, context: RepairContext) -> RepairResult:
        return tune_each(recovery, recovery.lengths, [context.text] * len(recovery.lengths), context)
