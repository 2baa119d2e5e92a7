"""A bank joined from prompts that exist: PEFT folders, banks, and the repairs of earlier runs. Nothing is trained."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import config
from idp.beginning import Beginning
from idp.config import keyword_option
from idp.errors import UserError
from idp.models import LoadedModel
from idp.prompting import peft_files
from idp.prompting.bank import EMPTY, PromptBank, beginning_of
from idp.recover import transfer
from idp.recover.context import RepairContext, RepairResult
from idp.recover.given import Given

if TYPE_CHECKING:
    import torch

    from idp.recover.idp import Idp

log = logging.getLogger(__name__)


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
        return replace(recovery, lengths=[len(member.prompt) for member in found]), Joined(found)

    def content(self) -> dict[str, Any]:
        """Names and content, wherever the files are."""
        return {
            "prompts": [
                [member.name, list(member.prompt.shape), hashlib.sha256(member.prompt.numpy().tobytes()).hexdigest()]
                for member in members(self)
            ]
        }

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
class Member:
    """A prompt [tokens, hidden_size], and where it comes from."""

    name: str
    prompt: torch.Tensor
    place: str  # as the user named it
    base_model: str | None  # what it was trained on, as its maker called it
    dense: str | None  # key of the dense model, where it was trained here
    beginning: Beginning | None = None  # the BOS that it was trained with, where that is known


@dataclass
class Joined(Given):
    """The prompts that are joined."""

    members: list[Member]

    def check(self, model: config.Model, dense: str, empty: LoadedModel, beginning: Beginning) -> None:
        check(self.members, model, dense, empty.model.get_input_embeddings().weight.shape[1])
        check_bos(self.members, beginning)


def members(options: AssembledBank) -> list[Member]:
    """The prompts of `recovery.bank.from`, in order, each with a name of its own.

    Raises:
        UserError: a folder holds no soft prompt, or one that cannot be read safely.
    """
    found: list[Member] = []
    for place in getattr(options, "from"):
        if not (joined := _members(place)):
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


def check(found: list[Member], model: config.Model, dense: str, hidden_size: int) -> None:
    """Holds prompts against the model that they are to repair.

    One of another hidden size is refused. One that was trained on a model of another name is used, with a warning: it
    is in another's space, but names differ for one model too.

    Args:
        found: the prompts.
        model: the run's model.
        dense: the key of its dense product.
        hidden_size: of its input embeddings.

    Raises:
        UserError: names both models and both sizes.
    """
    for member in found:
        theirs = member.base_model or "a model that it does not name"
        size = member.prompt.shape[1]
        if size != hidden_size:
            raise UserError(
                f"recovery.bank.from: {member.place}: prompt {member.name} has hidden size {size} ({theirs}), this"
                f" run's model {hidden_size} ({model.name}): it belongs to another model"
            )
        if member.dense is not None:
            same = member.dense == dense
        else:
            ours = {model.name.lower()} | ({_last(model.path)} if model.path else set())
            same = member.base_model is None or _last(member.base_model) in ours
        if not same:
            log.warning(
                "%s: prompt %s was trained on %s, this run's model is %s: its size fits, whether it helps will show",
                member.place,
                member.name,
                theirs,
                model.path or model.name,
            )


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


def _members(place: str) -> list[Member]:
    folder = Path(place).expanduser()
    if peft_files.is_adapter(folder):
        read = peft_files.read(folder)
        beginning, ahead = _of_export(folder)
        return [Member(folder.absolute().name, read.prompt[ahead:], place, read.base_model, None, beginning)]
    dense = None
    if not (folder / "bank.json").is_file():
        source = transfer.find_repair(place, setting="recovery.bank.from")
        folder, dense = source.repair.path / "bank", source.dense
        if not folder.is_dir():
            raise UserError(f"recovery.bank.from: {place}: that run's repair holds no prompts")
    described = json.loads((folder / "bank.json").read_text(encoding="utf-8"))
    if described.get("kind", "prompt") != "prompt":
        raise UserError(
            f"recovery.bank.from: {place}: a bank of kind {described['kind']}; only soft prompts are joined"
        )
    base = described.get("base_model_name_or_path")
    if not (folder / "prompt_0").is_dir():  # an export: its folders have the prompts' names
        return [
            Member(name, peft_files.read(folder / name).prompt[ahead:], place, base, dense, beginning)
            for beginning, ahead in [beginning_of(described)]
            for name, length in zip(described["names"], described["lengths"], strict=True)
            if length
        ]
    bank = PromptBank.load(folder)
    return [
        Member(name, prompt, place, base, dense, bank.beginning)
        for name, prompt in zip(bank.names, bank.prompts, strict=True)
        if len(prompt)  # the empty one joins by `recovery.empty_prompt`
    ]


def _of_export(folder: Path) -> tuple[Beginning | None, int]:
    """The BOS of a prompt whose folder is one of an exported bank's, and how many of its rows are the BOS's."""
    try:
        described = json.loads((folder.absolute().parent / "bank.json").read_text(encoding="utf-8"))
        known = folder.absolute().name in described["folders"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, 0
    return beginning_of(described) if known else (None, 0)


def _last(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()
