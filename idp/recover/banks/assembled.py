"""A bank joined from prompts that exist: PEFT folders, banks, and the repairs of earlier runs. Nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from idp import config
from idp.beginning import Beginning
from idp.config import keyword_option
from idp.errors import UserError
from idp.models import LoadedModel
from idp.prompting.bank import EMPTY, PromptBank
from idp.recover import existing
from idp.recover.context import RepairContext, RepairResult
from idp.recover.existing import Existing, Member

if TYPE_CHECKING:
    from idp.recover.idp import Idp

SETTING = "recovery.bank.from"


@dataclass
@keyword_option(
    "from", "list[str]", "PEFT prompt folders, bank folders, run folders or records whose prompts are joined"
)
class AssembledBank(config.Bank):
    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def find(self, recovery: Idp) -> tuple[Idp, Joined]:
        """The recovery with the lengths of the prompts that are joined."""
        found = members(self)
        return replace(recovery, lengths=[len(member.prompt) for member in found]), Joined(found, SETTING)

    def content(self) -> dict[str, Any]:
        """Names and content, wherever the files are."""
        return {"prompts": [[member.name, list(member.prompt.shape), member.digest] for member in members(self)]}

    def check(self, recovery: config.Recovery) -> None:
        if not getattr(self, "from"):
            raise UserError(
                "recovery.bank.from is empty: name folders of prompts, such as"
                " recovery.bank.from=[prompts/one,prompts/two]"
            )
        if recovery.beneath is not None:
            raise UserError(
                f"recovery/bank=assembled: recovery={recovery.kind} trains its prompts on its own adapter; use"
                " recovery=idp"
            )

    def make(self, recovery: Idp, context: RepairContext) -> RepairResult:
        found = members(self)
        made = {"kind": "assembled", "base_models": [member.base_model for member in found]}
        bank = PromptBank([member.prompt for member in found], [member.name for member in found], made=made)
        return RepairResult(bank, bank.parameters)


@dataclass
class Joined(Existing):
    """The prompts that are joined."""

    def check(self, model: config.Model, dense: str, empty: LoadedModel, beginning: Beginning) -> None:
        super().check(model, dense, empty, beginning)
        check_bos(self.members, beginning)


def members(options: AssembledBank) -> list[Member]:
    """The prompts of `recovery.bank.from`, in order, each with a name of its own.

    Raises:
        UserError: a folder holds no soft prompt, or one that cannot be read safely.
    """
    found: list[Member] = []
    for place in getattr(options, "from"):
        if not (joined := existing.prompts_at(place, SETTING)):
            raise UserError(
                f"recovery.bank.from: {place}: none of its prompts has any tokens (low-rank experts, or an empty prompt"
                " alone); only soft prompts are joined"
            )
        found += joined
    taken: dict[str, int] = {EMPTY: 1}  # which is none of theirs
    for member in found:
        taken[member.name] = taken.get(member.name, 0) + 1
        if taken[member.name] > 1:
            member.name = f"{member.name}_{taken[member.name]}"
    return found


def check_bos(found: list[Member], beginning: Beginning) -> None:
    """Refuses prompts that were made with another BOS than the one that they would be used with.

    Args:
        found: the prompts; those of which it is not known are taken as they are.
        beginning: the BOS of the run, and its place.

    Raises:
        UserError: names the prompt and both.
    """
    for member in found:
        if member.beginning is not None and member.beginning.described() != beginning.described():
            raise UserError(
                f"recovery.bank.from: {member.place}: prompt {member.name} was made with {_describe(member.beginning)},"
                f" this run has {_describe(beginning)}; choose recovery.bos and model.bos alike, or leave the prompt"
                " out"
            )


def _describe(beginning: Beginning) -> str:
    tokens, place = beginning.described().values()
    return f"BOS tokens {tokens} at recovery.bos={place}" if tokens else "no BOS"
