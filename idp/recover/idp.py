"""IDP (Hoang et al., 2310.00867): a bank of soft prompts, of which one is chosen for each input.

How the prompts come to differ is the bank's kind; the choice among them is made at inference by a selector, and the
attention selector adds no parameter.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Optional

from idp import config
from idp.config import (
    DENSE,
    DENSE_STATES,
    Bank,
    Choice,
    Fitting,
    Selector,
    Storage,
    Training,
    controls_option,
    empty_prompt_option,
    option,
    part,
)
from idp.errors import UserError
from idp.models import LoadedModel
from idp.recover import prompt_states
from idp.recover.context import RepairContext, RepairResult
from idp.recover.initial import LEARNED
from idp.recover.prompt import PromptTuning, Started, init_from_option


@dataclass
class Idp(Started, config.Prompted, config.Trained):
    method: ClassVar[str] = "idp"

    lengths: list[int] = option("tokens of each prompt of the bank", minimum=1)
    init: str = option(
        "as for recovery=prompt; each prompt has its own seed", choices=("vocabulary", "text", "random", LEARNED)
    )
    init_text: str = option("the text for init=text, repeated to the prompt's length")
    init_from: Optional[str] = init_from_option()
    selector: Selector = part(Selector)
    controls: bool = controls_option()
    fit: Fitting = part(Fitting)
    bank: Bank = field(default_factory=Bank, kw_only=True)
    storage: Storage = part(Storage, keyword=True)
    empty_prompt: bool = empty_prompt_option()

    @property
    def needs(self) -> frozenset[str]:
        return self.bank.needs | (super().needs & {DENSE} if self.trains else frozenset())

    @property
    def trains(self) -> bool:
        return self.bank.trains

    @property
    def holds_empty(self) -> bool:
        return self.empty_prompt

    @property
    def choice(self) -> Choice:
        return Choice(self.selector, self.fit, self.controls)

    def choosing(self, selector: Selector) -> Idp:
        return replace(self, selector=selector)

    @property
    def parts(self) -> dict[str, Any]:
        return {"bank": self.bank, "selector": self.selector}

    def bank_ahead(self, lengths: list[int]) -> tuple[list[str], bool]:
        return super().bank_ahead(lengths)[0], self.bank.centred(len(lengths), self.training)

    def judged(self, prompts: int) -> int:
        return self.bank.judged(prompts)

    def also_read(self, prompts: int, training: Training) -> int:
        return self.bank.also_read(prompts, training)

    @property
    def stored(self) -> Storage:
        return self.storage

    @property
    def started(self) -> list[int]:
        return self.lengths

    @property
    def texts(self) -> int:
        return len(self.lengths) if self.bank.shares else 1

    def prompt_lengths(self, tokenizer: Any = None) -> list[int]:
        return [length + self.most_held for length in self.lengths]

    def numbers(self, empty: LoadedModel) -> int:
        return sum(length + self.count_held(empty) for length in self.lengths) * prompt_states.width(self, empty)

    def content(self) -> dict[str, Any] | None:
        return self.bank.content()

    def find(self) -> tuple[config.Recovery, Any]:
        found, given = self.bank.find(self)
        return (found, given) if given is not None or not self.trains else super().find()

    def candidate(self) -> PromptTuning:
        """One prompt of the longest length."""
        return PromptTuning(
            kind="prompt",
            length=max(self.lengths),
            init=self.init,
            init_text=self.init_text,
            init_from=self.init_from,
            bos=self.bos,
            states=self.states,
            sink=self.sink,
            training=self.training,
            search=self.search,
        )

    def check(self, place: str = "recovery") -> None:
        if not self.lengths:
            alone = f", which {place}.empty_prompt=true joins" if self.empty_prompt else ""
            raise UserError(
                f"{place}.lengths is empty: give one length per prompt{alone}, such as {place}.lengths=[25,25,50]"
            )
        if not self.plain and not self.bank.trains_each:
            said = f"{place}.states={self.states}" if self.states == DENSE_STATES else f"{place}.sink={self.sink}"
            raise UserError(
                f"{said}: recovery/bank={self.bank.kind} does not train each of its prompts by itself, which that"
                " takes; use recovery/bank=independent or cluster, or leave it out"
            )
        self.selector.check()
        self.selector.check_members(prompts=True, experts=False)
        self.fit.check()
        self.bank.check(self)
        super().check(place)

    def check_model(self, empty: LoadedModel) -> None:
        prompt_states.check(self, empty)
        lengths = self.bank_lengths(empty.tokenizer)
        self.selector.check_model(empty.model.config.get_text_config(), len(lengths))
        self.selector.check_bank(lengths)

    def make(self, context: RepairContext) -> RepairResult:
        return self.bank.make(self, context)
