"""A written instruction as a bank of one: the embeddings of its tokens, or what the dense model makes of them.

Nothing is trained. With `states=dense` it is IntactKV (Liu et al., 2403.01241): keys and values that the compressed
model would compute with damaged weights are computed once by the dense one, and kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from idp import config
from idp.config import DENSE, DENSE_STATES, WEIGHTS, option
from idp.errors import UserError
from idp.models import LoadedModel
from idp.prompting.bank import PromptBank
from idp.recover import prompt_states
from idp.recover.context import RepairContext, RepairResult
from idp.recover.initial import embed


@dataclass
class HardPrompt(config.Prompted):
    text: str = option("the instruction placed before every input; none with sink=keep: that position alone")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({DENSE if self.states == DENSE_STATES else WEIGHTS})

    def check(self, place: str = "recovery") -> None:
        if not self.text.strip() and not self.most_held:
            raise UserError(
                f"{place}.text is empty: give the prompt's text, use recovery=none, or, for a first token alone,"
                f" {place}.sink=keep"
            )

    def check_model(self, empty: LoadedModel) -> None:
        prompt_states.check(self, empty)

    def prompt_lengths(self, tokenizer: Any = None) -> list[int]:
        return [len(self._tokens(tokenizer)) + self.most_held]

    def numbers(self, empty: LoadedModel) -> int:
        if self.states != DENSE_STATES:
            return 0  # the model has the embeddings
        written = len(self._tokens(empty.tokenizer)) if empty.tokenizer is not None else 0
        tokens = self.count_held(empty) + written
        return tokens * prompt_states.width(self, empty)

    def make(self, context: RepairContext) -> RepairResult:
        tokens = [*self.held(context.loaded), *self._tokens(context.loaded.tokenizer)]
        if self.states == DENSE_STATES:
            dense = prompt_states.source(self, context)
            return RepairResult(PromptBank([prompt_states.rows(dense, embed(dense, tokens)).cpu()], ["hard"], "prefix"))
        return RepairResult(PromptBank([embed(context.loaded, tokens)], ["hard"]), borrowed=True)

    def _tokens(self, tokenizer: Any) -> list[int]:
        return tokenizer(self.text, add_special_tokens=False)["input_ids"] if self.text.strip() else []
