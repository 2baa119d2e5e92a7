"""What the stages ask of a recovery's options; each kind is a file in `idp/recover`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import MISSING

from idp.beginning import AFTER, PLACES, Beginning
from idp.config.compressor import Calibration
from idp.config.options import DENSE, TEXT, WEIGHTS, decisive, option
from idp.config.selector import Choice, Selector
from idp.config.storage import Storage
from idp.config.training import Search, Training
from idp.errors import UserError


def bos_option() -> Any:
    """The field `bos` of a recovery that puts a prompt before the input; what it comes to with a model decides."""
    help = (
        "where the model's BOS token stands: before the prompt, after it (as a text's first token), or none at all;"
        " without effect where texts have none (model.bos)"
    )
    metadata = {"help": help, "choices": PLACES, "minimum": None, "maximum": None, "decides": False}
    return field(default=AFTER, kw_only=True, metadata=metadata)  # for YAMLs from before it was an option


def empty_prompt_option() -> Any:
    """The field `empty_prompt` of a recovery that chooses among prompts; it is no part of the prompts' own key."""
    return option(
        "whether the bank also holds the empty prompt, of no tokens: an input that no prompt helps is given none",
        default=False,
        unsaid=True,
        decides=False,
        keyword=True,
    )


AWAITED = "<a run to come>"


@dataclass
class Recovery:
    """What the stages ask of a recovery's options; each kind is a file in `idp/recover`, with how it is made."""

    kind: str = option("which one it is; choose with recovery=...")

    # The method of the literature that it is, for claims about that one: prompt (one soft prompt), idp (a bank of them
    # with a choice for each input), lora. A subclass is what its parent is unless it says otherwise; "": its kind.
    method: ClassVar[str] = ""
    # Of how it is made, as part of its key: a kind that comes to make other repairs from the same options counts it up.
    version: ClassVar[int] = 3

    def bank_ahead(self, lengths: list[int]) -> tuple[list[str], bool]:
        """Of the bank that it will make, the names of its prompts and whether it keeps the centres of their text.

        Args:
            lengths: tokens of each prompt.
        """
        return [f"prompt {number}" for number in range(len(lengths))], False

    # Bytes for each of the model's weights that its training holds beside the model itself.
    bytes_beside_weights: ClassVar[float] = 0.0

    # The option that names the run whose repair it uses, if it uses one: a plan may leave it `AWAITED`, where that run
    # is not there yet.
    awaits: ClassVar[str] = ""

    @property
    def awaited(self) -> bool:
        """Whether it uses the repair of a run that is not there yet: nothing is known of that."""
        return bool(self.awaits) and getattr(self, self.awaits) == AWAITED

    @property
    def repairs(self) -> bool:
        """Whether there is anything to make; else the run measures the compressed model as it is."""
        return True

    @property
    def needs(self) -> frozenset[str]:
        """What it reads to make its repair, of TEXT, CALIBRATION, DENSE, WEIGHTS and GRID; its `context` has only that.

        What it reads is checked beforehand, kept apart from what is evaluated, and part of the repair's key.
        """
        return frozenset({WEIGHTS})

    def calibration(self, options: Calibration) -> Calibration:
        """What it reads of the run's calibration text, where it needs CALIBRATION, given what the compressor reads."""
        return options

    # Of its pass over calibration text, those per weight and token: forward, and as much for what is made of inputs.
    operations: ClassVar[float] = 4.0

    @property
    def trains(self) -> bool:
        """Whether it trains anything."""
        return False

    @property
    def trained(self) -> Trained | None:
        """Itself, where it trains anything: with `training` and `search`."""
        return None

    @property
    def seeded(self) -> bool:
        """Whether its repair depends on the run's seed."""
        return TEXT in self.needs

    @property
    def adapts(self) -> bool:
        """Whether its repair changes the model's layers; else it is one of the input alone."""
        return self.beneath is not None and self.beneath.adapts

    @property
    def beneath(self) -> Recovery | None:
        """The recovery that is made first, and on whose adapter this one is made."""
        return None

    @property
    def prompts(self) -> bool:
        """Whether it puts prompts before the input, whatever their lengths."""
        return type(self).prompt_lengths is not Recovery.prompt_lengths

    @property
    def holds_empty(self) -> bool:
        """Whether the empty prompt joins its bank once that is made: an input may follow none."""
        return False

    @property
    def choice(self) -> Choice | None:
        """How one of its prompts is chosen for an input; None where there is nothing to choose."""
        return None

    def choosing(self, selector: Selector) -> Recovery:
        """The same with another selector, of one that has a `choice`."""
        raise NotImplementedError

    @property
    def parts(self) -> dict[str, Any]:
        """The kinds that are chosen within it, by their config group below `recovery`."""
        return {}

    @property
    def stored(self) -> Storage | None:
        """In how few bits its prompts are kept; None: as they were made."""
        return None

    @property
    def label(self) -> str:
        """What its repair is called in listings of a store."""
        return self.kind

    # Its identity.

    @property
    def unused(self) -> set[str]:
        """Its own options that what it makes does not depend on, as the others are set: no part of its key."""
        return set()

    def options(self) -> dict[str, Any]:
        """Its options that what it makes depends on, as plain values: its part of the repair's key."""
        return decisive(self)

    def content(self) -> dict[str, Any] | None:
        """Of a repair that exists already: what it is made of, by content, as all that its key knows of it, wherever
        the files lie. None: it is to be made, and its key is made of `options` and of what it needs."""
        return None

    # Before anything is computed.

    def find(self) -> tuple[Recovery, Any]:
        """Finds the files that its options name.

        Returns:
            the recovery with what follows from them in its own options, and an `idp.recover.given.Given` that checks
            them and says where they are from; None where nothing is taken from elsewhere.

        Raises:
            UserError: a file is not there, damaged, or not what it should be.
        """
        return self, None

    def beginning(self, bos: tuple[int, ...]) -> Beginning:
        """What every input begins with, given the model's BOS; without a prompt that is the text's first token."""
        return Beginning(bos, getattr(self, "bos", AFTER))

    def prompt_lengths(self, tokenizer: Any = None) -> list[int]:
        """Tokens of each prompt that it puts before the input."""
        return []

    def bank_lengths(self, tokenizer: Any = None) -> list[int]:
        """Tokens of each prompt of its bank, the empty one last, with 0."""
        return [*self.prompt_lengths(tokenizer), *([0] if self.holds_empty else [])]

    def numbers(self, empty: Any) -> int:
        """How many numbers its repair adds to a model, an `idp.models.LoadedModel` without weights, that which is made
        beneath it not counted; 0 where that is not known beforehand. One that needs GRID finds it in `empty.grid`."""
        return 0

    def check(self, place: str = "recovery") -> None:
        """Raises a UserError where the options do not go together; `place` is what they are called in messages."""

    def check_model(self, empty: Any) -> None:
        """Raises a UserError where the model, an `idp.models.LoadedModel` without weights, lacks what they name."""

    def check_weights(self, sparsity: float, bits: float | None) -> None:
        """Raises a UserError where it could not repair such a compressed model.

        Asked before anything is computed, of what the compressor claims, and again of what was measured: of a
        checkpoint of others nothing else is known.

        Args:
            sparsity: share of zeros among the weights of compressed layers.
            bits: of each of them on its grid; None where they are plain numbers.
        """

    def check_calibration(self, samples: int) -> None:
        """Raises a UserError where so many sequences of calibration text are too few."""

    # How it is made, put back on a model and exported.

    def make(self, context: Any) -> Any:
        """Makes the repair: an `idp.recover.context.RepairResult` out of an `idp.recover.context.RepairContext`."""
        raise NotImplementedError

    @classmethod
    def attach(cls, loaded: Any, folder: Path) -> Any:
        """Puts on a model what `make` has saved in `RepairContext.own` itself, in a form that only this kind knows.

        Prompts, low-rank updates and new values of parameters (`RepairResult`) are put on without it. Modules and
        parameters are replaced, never written into: latency takes a repair off its model again.

        Args:
            loaded: the model, an `idp.models.LoadedModel`, which may be changed in place.
            folder: a folder with those files, of a repair or of an export.

        Returns:
            the model with the repair on it.
        """
        raise NotImplementedError(f"{cls.__name__} saves files of its own, and has no `attach` that reads them")

    @classmethod
    def export(cls, saved: Path, folder: Path) -> str:
        """Writes into `folder` what `attach` reads, for those who load an exported checkpoint.

        Args:
            saved: the folder of what `make` has saved in `RepairContext.own`.
            folder: the folder of the export for it, which is there.

        Returns:
            a sentence for the model card that says what it is and how it is loaded.

        Raises:
            UserError: there is no format that could hold it; so it is unless a kind says how.
        """
        stated = cls.__dict__.get("kind")
        kind = stated if isinstance(stated, str) and stated != MISSING else cls.__module__.rpartition(".")[2]
        raise UserError(
            f"recovery={kind} cannot be exported: its repair is neither prompts, a low-rank update nor new values of"
            " parameters, and it does not say how it is exported; idp.load opens the run itself"
        )


@dataclass
class Trained(Recovery):
    training: Training = field(default_factory=Training)
    search: Search = field(default_factory=Search)

    part: ClassVar[str] = "prompt"  # what a search is of, in the record

    @property
    def needs(self) -> frozenset[str]:
        teacher = {DENSE} if self.training.objective == "distill" else set()
        return frozenset({TEXT, WEIGHTS} | teacher)

    @property
    def trains(self) -> bool:
        return True

    @property
    def trained(self) -> Trained | None:
        return self if self.trains else None

    @property
    def texts(self) -> int:
        """How many times the text of one training it reads."""
        return 1

    def judged(self, prompts: int) -> int:
        """How often an evaluation on held-out text reads that text."""
        return prompts

    def also_read(self, prompts: int, training: Training) -> int:
        """Sequences that its training reads, forward only, beside those of training each prompt and judging it."""
        return 0

    def options(self) -> dict[str, Any]:
        """What a search chooses is no part of it: what is searched is."""
        found = super().options()
        if self.search.learning_rates:
            del found["training"]["learning_rate"]
        if self.search.inits:
            found.pop("init", None)  # not there where it is unsaid
        if not self.search.wanted:
            del found["search"]
        return found

    def candidate(self) -> Trained:
        """What a search trains in its place, to compare learning rates and initial values."""
        return self

    def check(self, place: str = "recovery") -> None:
        if self.training.warmup_steps >= self.training.steps:
            raise UserError(
                f"{place}.training.warmup_steps={self.training.warmup_steps}: must be less than {place}.training.steps="
                f"{self.training.steps}"
            )
        known = {item.name: item.metadata["choices"] for item in dataclasses.fields(self) if item.name == "init"}
        for init in self.search.inits:
            if init not in known.get("init", ()):
                wanted = f"choose among {', '.join(known['init'])}" if known else f"{self.kind} has none; use []"
                raise UserError(f"{place}.search.inits={init}: {wanted}")
