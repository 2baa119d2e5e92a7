"""What IDP asks of a bank's options; each kind is a file in `idp/recover/banks`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from idp.config.options import TEXT, WEIGHTS, option
from idp.config.recovery import Recovery
from idp.config.training import Training


@dataclass
class Bank:
    """What IDP asks of the way in which its prompts come to differ; each kind is a file in `idp/recover/banks`."""

    kind: str = option("how the prompts of a bank come to differ; choose with recovery/bank=...")

    # Whether it trains each prompt by `idp.recover.tuning.tune_each`, which heeds the recovery's `states` and `sink`.
    trains_each: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """What it takes to make it, as `Recovery.needs`."""
        return frozenset({TEXT, WEIGHTS})

    @property
    def trains(self) -> bool:
        """Whether its prompts are trained; else they exist already."""
        return TEXT in self.needs

    def centred(self, prompts: int, training: Training) -> bool:
        """Whether it keeps the centre of the text that each prompt was trained on."""
        return False

    @property
    def shares(self) -> bool:
        """Whether its prompts share the training text out among them; else each reads all of it."""
        return False

    def judged(self, prompts: int) -> int:
        """How often an evaluation on held-out text reads that text."""
        return prompts

    def also_read(self, prompts: int, training: Training) -> int:
        """Sequences that its training reads, forward only, beside those of training each prompt and judging it."""
        return 0

    def check(self, recovery: Any) -> None:
        """Raises a UserError where the options, or the recovery's, do not go together."""

    def find(self, recovery: Any) -> tuple[Recovery, Any]:
        """As `Recovery.find`, for the recovery whose bank it is."""
        return recovery, None

    def content(self) -> dict[str, Any] | None:
        """As `Recovery.content`."""
        return None

    def make(self, recovery: Any, context: Any) -> Any:
        """Makes the bank, a prompt for each of the recovery's lengths; `context` and result as of `Recovery.make`."""
        raise NotImplementedError
