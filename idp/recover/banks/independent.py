"""Prompts trained alone, as prompt tuning trains one, each from its own start and on its own order of the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from idp import config
from idp.recover.tuning import tune_each
from idp.recover.work import Made, Work

if TYPE_CHECKING:
    from idp.recover.idp import Idp


@dataclass
class IndependentBank(config.Bank):
    def make(self, recovery: Idp, work: Work) -> Made:
        return tune_each(recovery, recovery.lengths, [work.text] * len(recovery.lengths), work)
