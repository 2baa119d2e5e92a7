"""One trained prompt, twice before every input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from idp.prompting.bank import PromptBank
from idp.recover.prompt import PromptTuning
from idp.recover.work import Made, Work


@dataclass
class Doubled(PromptTuning):
    def prompt_lengths(self, tokenizer: Any = None) -> list[int]:
        return [2 * self.length]

    def make(self, work: Work) -> Made:
        made = super().make(work)
        (prompt,) = made.bank.prompts
        return Made(PromptBank([prompt.repeat(2, 1)], ["doubled"]), made.trainable, histories=made.histories)
