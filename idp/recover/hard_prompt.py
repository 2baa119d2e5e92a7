"""A written instruction as a bank of one: the embeddings of its tokens. Nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from idp import config
from idp.config import bos_option, option
from idp.errors import UserError
from idp.prompting.bank import PromptBank
from idp.recover.context import RepairContext, RepairResult
from idp.recover.initial import embed


@dataclass
class HardPrompt(config.Recovery):
    text: str = option("the instruction placed before every input")
    bos: str = bos_option()

    def check(self, place: str = "recovery") -> None:
        if not self.text.strip():
            raise UserError(f"{place}.text is empty: give the prompt's text, or use recovery=none")

    def prompt_lengths(self, tokenizer: Any = None) -> list[int]:
        return [len(self._tokens(tokenizer))]

    def make(self, context: RepairContext) -> RepairResult:
        prompt = embed(context.loaded, self._tokens(context.loaded.tokenizer))
        return RepairResult(PromptBank([prompt], ["hard"]), borrowed=True)

    def _tokens(self, tokenizer: Any) -> list[int]:
        return tokenizer(self.text, add_special_tokens=False)["input_ids"]
