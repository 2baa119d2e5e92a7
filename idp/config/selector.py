"""What the stages ask of a selector's options; each kind is a file in `idp/prompting/selectors`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from idp.config.options import OUTCOMES, TEXT, WEIGHTS, option, values_of
from idp.config.task import Task
from idp.errors import UserError

log = logging.getLogger(__name__)


def controls_option() -> Any:
    """The field `controls` of a recovery that chooses among prompts."""
    return option(
        "also measure each prompt alone: what random, best, worst and oracle choice would score", decides=False
    )


@dataclass
class Selector:
    """What the stages ask of a selector's options; each kind is a file in `idp/prompting/selectors`."""

    kind: str = option("how one prompt of the bank is chosen for an input; choose with recovery/selector=...")
    temperature: Optional[float] = option(
        "null: an input follows the prompt of the highest score; else the mean of all prompts' keys and values, weighed"
        " by softmax(scores / temperature)",
        minimum=1e-6,
        maximum=1e6,
        default=None,
        unsaid=True,
        keyword=True,
    )

    # Whether its scores say by how much one prompt is better than another, so that prompts can be weighed by them.
    graded: ClassVar[bool] = True
    needs_empty: ClassVar[bool] = False  # whether it weighs prompts against the empty one, which must be there

    @property
    def scores_empty(self) -> bool:
        """Whether it can score the empty prompt."""
        return True

    @property
    def identity(self) -> dict[str, Any]:
        """Its part of a key."""
        return values_of(self)

    @property
    def fits(self) -> bool:
        """Whether it learns something before it can choose: from held-out text, or from what its `needs` say."""
        return False

    @property
    def needs(self) -> frozenset[str]:
        """What it reads before it can choose: TEXT, each prompt's loss on which takes the model, or OUTCOMES, those of
        each prompt on the documents of `router_tasks`."""
        return frozenset({TEXT, WEIGHTS}) if self.fits and not self.uses_labels else frozenset()

    def router_tasks(self, task: Task) -> Task:
        """Of one that needs OUTCOMES, the tasks whose documents it learns from, with their answers: none that the run
        evaluates. `task` is the run's own, which says where documents are and with how many examples they are asked."""
        raise NotImplementedError

    @property
    def uses_labels(self) -> bool:
        """Whether it chooses with the answers in hand: it is measured by `best_by_labels`, and cannot be used."""
        return False

    @property
    def passes(self) -> int:
        """How often the model reads an input, for each prompt, before one is chosen."""
        return 0

    @property
    def reads_layers(self) -> int | None:
        """How many of the model's layers suffice for its choice, from the first on; 0: the embeddings; None: all."""
        return None

    @property
    def constant(self) -> bool:
        """Whether it gives every input the same prompt by design: then one prompt for all is no collapse."""
        return False

    @property
    def published(self) -> bool:
        """Whether it is the choice that IDP's paper describes, by which claims about IDP are judged if it is there."""
        return False

    @property
    def chooses_one(self) -> bool:
        """Whether every input stands behind one prompt of the bank as it is: what that prompt alone scores there is
        then its score, and is not computed again."""
        return self.temperature is None

    def best_by_labels(self, scores: Any) -> Any:
        """Of one that uses the labels, the choice for each document: the first of the prompts that score best on it.

        Args:
            scores: [documents, prompts], what each prompt alone scored on a document, the greater the better.

        Returns:
            [documents], each the number of a prompt.
        """
        return scores.argmax(1)

    def check(self) -> None:
        """Raises a UserError where the options do not go together."""

    def check_model(self, model: Any, prompts: int | None = None) -> None:
        """Raises a UserError where the model or the bank does not have what the options name.

        Args:
            model: the model's config, of transformers.
            prompts: of the bank; None where that is not known yet.
        """

    def check_prompts(self, prompts: int) -> None:
        """Raises a UserError where a bank of so many prompts does not have those that the options name."""

    def check_bank(self, lengths: Sequence[int]) -> None:
        """Raises a UserError where it cannot choose among prompts of so many tokens, 0 for the empty one."""
        if len(lengths) < 2:
            return
        self.check_mixing(lengths)
        if 0 in lengths and not self.scores_empty:
            raise UserError(
                f"recovery.selector={self.kind} reads a prompt's own tokens, and the empty prompt has none; use"
                " recovery/selector=attention_calibrated, whose threshold for it is fitted on held-out text, or another"
                " selector"
            )
        if 0 not in lengths and self.needs_empty:
            raise UserError(
                f"recovery.selector={self.kind} weighs prompts against none, and this bank has no empty prompt; add"
                " recovery.empty_prompt=true, or use recovery/selector=likelihood"
            )

    def check_mixing(self, lengths: Sequence[int]) -> None:
        """Raises a UserError where it is to mix prompts of so many tokens and cannot."""
        if self.temperature is None:
            return
        if not self.graded:
            raise UserError(
                f"recovery.selector.temperature={self.temperature}: {self.kind} does not say by how much a prompt"
                " is better than another, so it cannot mix them; use recovery.selector.temperature=null"
            )
        check_mixable(lengths)

    def check_members(self, prompts: bool, experts: bool) -> None:
        """Raises a UserError where a bank lacks what it reads: `prompts` says whether there are tokens to a bank's
        members, `experts` whether there are low-rank updates."""

    @property
    def takes_centres(self) -> bool:
        """Whether the centres that a bank may bring are all that it would be fitted for: the mean input embedding of
        the text that each prompt was trained on, which `restore` is then given as `centres`."""
        return False

    @property
    def settles(self) -> bool:
        """Whether it comes to another selector once it is fitted: `settled`."""
        return False

    def settled(self, fitted: dict[str, Any]) -> Selector:
        """The selector that chooses as this one does once it is fitted, where there is one that needs no fit: what is
        measured with either is the same. `fitted` is the description of the fit."""
        return self

    def check_usable(self) -> None:
        """Raises a UserError where no model can choose like it: one that uses the labels is measured alone."""
        if self.uses_labels:
            raise UserError(
                f"recovery.selector={self.kind} chooses with the answers in hand: it can be evaluated, not used; take"
                " another selector of the same bank"
            )

    def build(self) -> Any:
        """The `idp.prompting.selectors.base.Selector` that they describe, not fitted yet where it needs that."""
        self.check_usable()
        raise NotImplementedError


def check_mixable(lengths: Sequence[int]) -> None:
    """Raises a UserError where prompts of so many tokens cannot be mixed: their keys stand at other positions."""
    if len(set(lengths)) > 1:
        raise UserError(
            f"recovery.selector.temperature: prompts of {', '.join(map(str, lengths))} tokens cannot be mixed, since"
            " their keys stand at other positions; give all prompts one length and leave out the empty one, or use"
            " recovery.selector.temperature=null"
        )


@dataclass
class Fitting:
    blocks: int = option("held-out blocks on which prompts are compared and selectors are fitted", minimum=2)
    tokens: int = option("tokens of each of those blocks", minimum=8)
    context_tokens: int = option("tokens at the start of a block that a selector is shown", minimum=1)
    reads: Optional[int] = option("the former name of context_tokens", default=None, unsaid=True, decides=False)

    def __post_init__(self) -> None:
        if self.reads is not None:
            log.warning("recovery.fit.reads is now recovery.fit.context_tokens; the next release forgets the old name")
            self.context_tokens, self.reads = self.reads, None

    @property
    def identity(self) -> dict[str, Any]:
        """Its part of a key, under the names that keys have always had."""
        return {"blocks": self.blocks, "tokens": self.tokens, "reads": self.context_tokens}

    def check(self) -> None:
        """Raises a UserError where more is shown of a block than it has."""
        if self.context_tokens > self.tokens:
            raise UserError(
                f"recovery.fit.context_tokens={self.context_tokens}: a block has recovery.fit.tokens={self.tokens}"
                " tokens; show that many or fewer"
            )


@dataclass(frozen=True)
class Choice:
    """How one of several prompts is chosen, and what is measured of that choice."""

    selector: Selector
    fit: Fitting  # the held-out text on which prompts are compared
    controls: bool  # whether each prompt is also measured alone

    @property
    def compares(self) -> bool:
        """Whether it compares prompts on held-out text: as controls, or to fit the selector."""
        return self.controls or (self.selector.fits and not self.learns_outcomes)

    @property
    def learns_outcomes(self) -> bool:
        """Whether the selector learns from each prompt's outcomes on tasks that the run does not evaluate."""
        return OUTCOMES in self.selector.needs
