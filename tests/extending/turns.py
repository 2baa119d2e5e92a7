"""Prompts trained alone, on every second block of the text, or every third: as many turns as there are prompts."""

from __future__ import annotations

from dataclasses import dataclass

from idp import config
from idp.recover.context import RepairContext, RepairResult
from idp.recover.idp import Idp
from idp.recover.tuning import tune_each


@dataclass
class TurnsBank(config.Bank):
    @property
    def shares(self) -> bool:
        return True  # as much text is read for each prompt as for one alone

    def make(self, recovery: Idp, context: RepairContext) -> RepairResult:
        train, heldout = context.text  # each [blocks, tokens]
        prompts = len(recovery.lengths)
        texts = [(train[number::prompts], heldout) for number in range(prompts)]
        return tune_each(recovery, recovery.lengths, texts, context)
