"""The weight side of a stored repair: its low-rank updates, new values, new scales, and what its kind has saved."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from idp import registry
from idp.config import Recovery
from idp.errors import UserError
from idp.models import LoadedModel
from idp.recover import lora, rescaling, values
from idp.recover.context import OWN, RepairResult

log = logging.getLogger(__name__)

ADAPTER, VALUES, SCALES = "adapter", "values", "scales"
FOLDERS = (ADAPTER, VALUES, OWN, SCALES)
COUNTED = (ADAPTER, VALUES, OWN, f"{SCALES}/{rescaling.AFTER}")  # whose tensors are the repair
DESCRIPTION = "repair.json"


@dataclass(frozen=True)
class WeightSide:
    """Where each part of it is: folders, None where there is no such part; and the kind of recovery that made it."""

    kind: str
    adapter: Path | None = None
    values: Path | None = None
    own: Path | None = None
    scales: Path | None = None

    @classmethod
    def of(cls, repair: Path) -> WeightSide:
        """That of a repair's folder."""
        kind = json.loads((repair / DESCRIPTION).read_text(encoding="utf-8"))["kind"]
        return cls(kind, *(folder if (folder := repair / name).is_dir() else None for name in FOLDERS))

    @property
    def parts(self) -> list[Path]:
        """The folders that are there."""
        return [folder for folder in (self.adapter, self.values, self.own, self.scales) if folder is not None]

    def attach(self, loaded: LoadedModel) -> LoadedModel:
        """The model with it on, frozen; unchanged where there is none.

        Raises:
            UserError: it is another model's, or only its kind can put it on, which is not to be found here.
        """
        if self.values is not None:  # first: an adapter changes the names of what it goes on
            loaded = values.attach(loaded, self.values)
        if self.scales is not None:
            loaded = rescaling.attach(loaded, self.scales)
        if self.adapter is not None:
            loaded = lora.attach(loaded, self.adapter)
        if self.own is not None:
            loaded = maker(self.kind, str(self.own.parent)).attach(loaded, self.own)
            loaded.model.eval().requires_grad_(False)
        return loaded


def has_weight_side(repair: Path) -> bool:
    """Whether a repair changes the model's layers; else it is one of the input alone."""
    return any((repair / name).is_dir() for name in FOLDERS)


def method_of(repair: Path) -> str:
    """The method of the literature that a repair is, or its kind's name."""
    kind = WeightSide.of(repair).kind
    node = registry.recoveries().get(kind)
    return (node.method if node is not None else "") or kind


def maker(kind: str, place: str) -> type[Recovery]:
    """The recovery of that name.

    Raises:
        UserError: there is none here; `place` is what was made by it.
    """
    if kind not in registry.recoveries():
        raise UserError(
            f"{place}: made by recovery={kind}, which alone can put it on a model and is not among"
            f" {', '.join(registry.recoveries())}; name the module that has it with plugins=[module]"
        )
    return registry.recoveries()[kind]


def save(made: RepairResult, loaded: LoadedModel, folder: Path) -> None:
    """Writes what a recovery has given of updates and values into a repair's folder.

    Raises:
        ValueError: an update beside an adapter that is there already: a model holds one.
    """
    if made.low_rank:
        if (folder / ADAPTER).exists():
            raise ValueError("low_rank: the repair has an adapter already, on which it was made; a model holds one")
        lora.save(loaded, made.low_rank, folder / ADAPTER)
    if made.values:
        values.save(made.values, folder / VALUES)
    if made.scales:
        rescaling.save(made.scales, folder / SCALES)
