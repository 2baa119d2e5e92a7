"""One trained prompt, twice before every input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from idp.prompting.bank import PromptBank
from idp.recover.context import RepairContext, RepairResult
from idp.recover.prompt import PromptTuning


@dataclass
class Doubled(PromptTuning):
    def prompt_lengths(self, tokenizer: Any = None) -> list[int]:
        return [2 * self.length]

    def make(self, context: RepairContext) -> RepairResult:
        made = super().make(context)
        (prompt,) = made.bank.prompts
        return RepairResult(PromptBank([prompt.repeat(2, 1)], ["doubled"]), made.trainable, histories=made.histories)
