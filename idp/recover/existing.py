"""Soft prompts that exist: PEFT folders, banks, exports, and the repairs of earlier runs."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import config
from idp.beginning import Beginning
from idp.errors import UserError
from idp.models import LoadedModel
from idp.prompting import peft_files
from idp.prompting.bank import PromptBank, beginning_of
from idp.recover import transfer
from idp.recover.given import Given

if TYPE_CHECKING:
    import torch

    from idp.tasks.tasks import TaskSource

log = logging.getLogger(__name__)


@dataclass
class Member:
    """A prompt [tokens, hidden_size], and where it comes from."""

    name: str
    prompt: torch.Tensor
    place: str  # as the user named it
    base_model: str | None  # what it was trained on, as its maker called it
    dense: str | None  # key of the dense model, where it was trained here
    beginning: Beginning | None = None  # the BOS that it was trained with, where that is known
    corpora: list[dict[str, Any]] = field(default_factory=list)  # options of the texts that it was trained on, if known

    @property
    def digest(self) -> str:
        """Of its numbers: the same wherever the files are."""
        return hashlib.sha256(self.prompt.numpy().tobytes()).hexdigest()


@dataclass
class Existing(Given):
    """Prompts that a recovery takes from files."""

    members: list[Member]
    setting: str  # the option that names them

    def check(self, model: config.Model, dense: str, empty: LoadedModel, beginning: Beginning) -> None:
        check(self.members, model, dense, empty.model.get_input_embeddings().weight.shape[1], self.setting)

    def refuse_evaluated(self, tasks: list[TaskSource]) -> None:
        for member in self.members:
            transfer.refuse_trained_on(member.corpora, tasks, f"{self.setting}: {member.place}")


def prompts_at(place: str, setting: str) -> list[Member]:
    """The soft prompts of a PEFT folder, a bank, an export's `prompts`, or a run; those of no tokens left out.

    Args:
        place: a folder, or a run's record.
        setting: the option that names it, for messages.

    Raises:
        UserError: it holds no soft prompt, or one that cannot be read safely.
    """
    folder = Path(place).expanduser()
    if peft_files.is_adapter(folder):
        read = peft_files.read(folder)
        beginning, ahead = _of_export(folder)
        return [Member(folder.absolute().name, read.prompt[ahead:], place, read.base_model, None, beginning)]
    dense, corpora = None, []
    if not (folder / "bank.json").is_file():
        source = transfer.find_repair(place, setting=setting)
        folder, dense, corpora = source.repair.path / "bank", source.dense, source.corpora
        if not folder.is_dir():
            raise UserError(f"{setting}: {place}: that run's repair holds no prompts")
    described = json.loads((folder / "bank.json").read_text(encoding="utf-8"))
    if described.get("kind", "prompt") != "prompt":
        raise UserError(f"{setting}: {place}: a bank of kind {described['kind']}; only soft prompts are taken")
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
        Member(name, prompt, place, base, dense, bank.beginning, corpora)
        for name, prompt in zip(bank.names, bank.prompts, strict=True)
        if len(prompt)  # the empty one joins by `recovery.empty_prompt`
    ]


def check(found: list[Member], model: config.Model, dense: str, hidden_size: int, setting: str) -> None:
    """Holds prompts against the model that they are to repair.

    One of another hidden size is refused. One that was trained on a model of another name is used, with a warning: it
    is in another's space, but names differ for one model too.

    Args:
        found: the prompts.
        model: the run's model.
        dense: the key of its dense product.
        hidden_size: of its input embeddings.
        setting: the option that names them, for messages.

    Raises:
        UserError: names both models and both sizes.
    """
    for member in found:
        theirs = member.base_model or "a model that it does not name"
        size = member.prompt.shape[1]
        if size != hidden_size:
            raise UserError(
                f"{setting}: {member.place}: prompt {member.name} has hidden size {size} ({theirs}), this"
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
