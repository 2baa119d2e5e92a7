"""Prompt tuning (Lester et al., 2104.08691) on a frozen compressed model, as Xu et al. (2305.11186) repair it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from idp import config
from idp.config import Search, Storage, option, part
from idp.models import LoadedModel
from idp.recover import prompt_states
from idp.recover.context import RepairContext, RepairResult
from idp.recover.existing import Existing
from idp.recover.initial import LEARNED, Start
from idp.recover.tuning import tune_each


def init_from_option() -> Any:
    """The field `init_from` of a recovery whose prompts may go on from one that was learned before."""
    help = "init=learned: the run, PEFT folder or bank whose one prompt training goes on from; it has the same length"
    return option(help, default=None, unsaid=True, keyword=True)


class Started:
    """How the prompts of a recovery start, of one with the options `init`, `init_text`, `init_from` and `search`."""

    length: int
    init: str
    init_text: str
    init_from: Optional[str]
    search: Search

    @property
    def started(self) -> list[int]:
        """Tokens of each prompt that it starts."""
        return [self.length]

    @property
    def inits(self) -> list[str]:
        """Every value of `init` that is trained from."""
        return self.search.inits or [self.init]

    @property
    def start(self) -> Start:
        """What a prompt starts from."""
        return Start(self.init, self.init_text, self.init_from)

    @property
    def unused(self) -> set[str]:
        """The text of `init=text`, where no prompt starts from it."""
        return set() if "text" in self.inits else {"init_text"}

    def options(self) -> dict[str, Any]:
        """With the content of the prompt that it goes on from, wherever the files are."""
        learned = {"init_from": self.start.learned.digest} if LEARNED in self.inits else {}
        return super().options() | learned  # type: ignore[misc]

    def find(self) -> tuple[Any, Existing | None]:
        return self, self.start.find(self.started) if LEARNED in self.inits else None

    def check(self, place: str = "recovery") -> None:
        self.start.check(LEARNED in self.inits)
        super().check(place)  # type: ignore[misc]


@dataclass
class PromptTuning(Started, config.Prompted, config.Trained):
    method: ClassVar[str] = "prompt"

    length: int = option("prompt tokens", minimum=1)
    init: str = option(
        "vocabulary: random rows of the embedding; first_rows: rows 0..n-1 (Xu et al.); text: the tokens of init_text;"
        " random: Gaussian with the embedding's own mean and deviation; corpus: the first of a training document;"
        " learned: the prompt of init_from",
        choices=("vocabulary", "first_rows", "text", "random", "corpus", LEARNED),
    )
    init_text: str = option("the text for init=text, repeated to the prompt's length")
    init_from: Optional[str] = init_from_option()
    storage: Storage = part(Storage, keyword=True)

    @property
    def stored(self) -> Storage:
        return self.storage

    def prompt_lengths(self, tokenizer: Any = None) -> list[int]:
        return [self.length + self.most_held]

    def numbers(self, empty: LoadedModel) -> int:
        return (self.length + self.count_held(empty)) * prompt_states.width(self, empty)

    def check_model(self, empty: LoadedModel) -> None:
        prompt_states.check(self, empty)

    def make(self, context: RepairContext) -> RepairResult:
        return tune_each(self, [self.length], [context.text], context)
