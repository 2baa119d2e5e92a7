"""Prompt tuning (Lester et al., 2104.08691) on a frozen compressed model, as Xu et al. (2305.11186) repair it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from idp import config
from idp.config import Search, Storage, option, part
from idp.models import LoadedModel
from idp.recover import prompt_states
from idp.recover.context import RepairContext, RepairResult
from idp.recover.initial import Start
from idp.recover.tuning import tune_each


@dataclass
class PromptTuning(config.Prompted, config.Trained):
    method: ClassVar[str] = "prompt"

    length: int = option("prompt tokens", minimum=1)
    init: str = option(
        "vocabulary: random rows of the embedding; first_rows: rows 0..n-1 (Xu et al.); text: the tokens of init_text;"
        " random: Gaussian with the embedding's own mean and deviation; corpus: the first of a training document",
        choices=("vocabulary", "first_rows", "text", "random", "corpus"),
    )
    init_text: str = option("the text for init=text, repeated to the prompt's length")
    storage: Storage = part(Storage, keyword=True)

    @property
    def unused(self) -> set[str]:
        return unused_text(self.init, self.search)

    @property
    def stored(self) -> Storage:
        return self.storage

    @property
    def start(self) -> Start:
        """What the prompt starts from."""
        return Start(self.init, self.init_text)

    def prompt_lengths(self, tokenizer: Any = None) -> list[int]:
        return [self.length + self.most_held]

    def numbers(self, empty: LoadedModel) -> int:
        return (self.length + self.count_held(empty)) * prompt_states.width(self, empty)

    def check_model(self, empty: LoadedModel) -> None:
        prompt_states.check(self, empty)

    def make(self, context: RepairContext) -> RepairResult:
        return tune_each(self, [self.length], [context.text], context)


def unused_text(init: str, search: Search) -> set[str]:
    """The text of `init=text`, where no prompt starts from it."""
    return set() if "text" in (search.inits or [init]) else {"init_text"}
