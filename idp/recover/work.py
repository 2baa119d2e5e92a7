"""What a recovery is given to make a repair with, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.beginning import Beginning
from idp.recover.training import History, Report

if TYPE_CHECKING:
    import torch

    from idp.models import LoadedModel
    from idp.prompting.bank import PromptBank


@dataclass
class Work:
    """The frozen model, and for a recovery that is trained its text, teacher and places.

    `text` are training and held-out blocks, each [blocks, tokens]; `checkpoint` is a folder that survives a kill,
    `folder` the product's own, where an adapter goes. `label` is what is said beside the progress bar, if not what the
    recovery itself would say. `beginning` is the BOS of every input, and its place about a prompt that is made.
    """

    loaded: LoadedModel
    seed: int
    checkpoint: Path
    folder: Path
    text: tuple[torch.Tensor, torch.Tensor] | None = None
    report: Report | None = None
    teacher: LoadedModel | None = None
    label: str | None = None
    beginning: Beginning | None = None

    def __post_init__(self) -> None:
        if self.beginning is None:
            self.beginning = Beginning(self.loaded.bos)


@dataclass
class Made:
    """What became of it: a bank, numbers trained, those of an adapter, curves, and what searches tried.

    A bank that is `borrowed` holds numbers that the model has already, such as its own embeddings.
    """

    bank: PromptBank | None = None
    trainable: int = 0
    adapter: int = 0
    histories: dict[str, History] = field(default_factory=dict)
    searches: dict[str, dict[str, Any]] = field(default_factory=dict)
    borrowed: bool = False

    @property
    def added(self) -> int:
        """Numbers that the repair adds to the model."""
        return self.adapter + (self.bank.parameters if self.bank is not None and not self.borrowed else 0)

    def on(self, beneath: Made) -> Made:
        """Both together: this, which was made on the repaired model of the other."""
        return Made(
            self.bank if self.bank is not None else beneath.bank,
            self.trainable + beneath.trainable,
            self.adapter + beneath.adapter,
            beneath.histories | self.histories,
            beneath.searches | self.searches,
            self.borrowed,
        )
