"""An exported folder in memory: the checkpoint that was measured, with the repair beside it on it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import models
from idp.beginning import AUTO
from idp.config import Model, Selector
from idp.errors import UserError, out_of_memory_is_explained
from idp.evaluate.room import FEWEST
from idp.export.checkpoint import PROVENANCE
from idp.export.repair import PROMPTS, weight_side
from idp.recover.weight_side import SCALES
from idp.registry import restore

if TYPE_CHECKING:
    from idp.prompting.repaired import RepairedModel


@dataclass
class Exported:
    """A folder that `python -m idp.export` wrote; `about` is its provenance."""

    folder: Path
    about: dict[str, Any]

    @property
    def label(self) -> str:
        """What it is called in messages."""
        return str(self.folder)

    @property
    def name(self) -> str:
        """The exported run's name."""
        return self.about["run"]

    @property
    def batch_tokens(self) -> int:
        """Tokens per forward pass: those of a CPU, as an export does not say what the run had."""
        return FEWEST

    @property
    def variants(self) -> list[str]:
        """The models that it holds: its own, called dense where nothing was compressed, and the repaired one.

        Its own is the repaired one where the repair is in its scales.
        """
        if SCALES in self.about["repair"]:
            return ["repaired"]
        base = "dense" if self.about["compressor"] == "none" else "compressed"
        return [base, *(["repaired"] if self.about["repair"] else [])]

    def check(self, variant: str) -> None:
        """Refuses a variant that is not here, or that cannot be used.

        Raises:
            UserError: as said.
        """
        if variant not in self.variants:
            raise UserError(
                f"{self.label}: this export holds no {variant} model, only {' and '.join(self.variants)}; the run's own"
                " record may have more"
            )
        if variant == "repaired" and (chooser := self.selector) is not None:
            chooser.check_usable()

    def open(self, variant: str, device: str | None = None, dtype: str | None = None) -> RepairedModel:
        """One of its models in memory, its weights decompressed.

        Args:
            variant: one of `variants`.
            device: where to; None: a GPU if there is one.
            dtype: of the weights; None: the one that was measured.

        Raises:
            UserError: it is not here, or cannot be read.
        """
        from idp.prompting.bank import PromptBank
        from idp.prompting.repaired import RepairedModel
        from idp.recover import selection

        self.check(variant)
        bos = self.about.get("bos", AUTO)
        config = Model(
            self.name, "local", str(self.folder), None, self.about["dtype"], device or "auto", None, False, bos, {}
        )
        with out_of_memory_is_explained("load"):
            loaded = self._open_model(config, dtype or config.dtype)
            if variant != "repaired":
                return RepairedModel(loaded)
            kind = self.about.get("recovery", "")  # older exports hold no part that only its kind can read
            loaded = weight_side(self.folder, self.about["repair"], kind).attach(loaded)
            if PROMPTS not in self.about["repair"]:
                return RepairedModel(loaded)
            bank = PromptBank.load(self.folder / PROMPTS)
            chooser = self.selector
            selector = selection.restored(chooser, self.folder / PROMPTS) if chooser is not None else None
            return RepairedModel(loaded, bank, selector)

    @property
    def selector(self) -> Selector | None:
        """What chooses among its prompts; None for one prompt, or none."""
        if PROMPTS not in self.about["repair"]:
            return None
        options = json.loads((self.folder / PROMPTS / "bank.json").read_text(encoding="utf-8")).get("selector")
        return restore(Selector, options, "selector") if options else None

    def _open_model(self, config: Model, dtype: str) -> models.LoadedModel:
        """Unpacked as it was measured, and cast afterwards."""
        loaded = models.open_model(self.folder, config if self.about["packed"] else replace(config, dtype=dtype))
        loaded.model.to(models.dtype_of(replace(config, dtype=dtype)))
        return loaded


def find_export(folder: Path) -> Exported:
    """The export in a folder that has an `export.json`.

    Raises:
        UserError: it cannot be read.
    """
    try:
        about = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        alone = about.get("only")
        _ = about["run"], about["compressor"], about["repair"], about["dtype"], alone or about["packed"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / PROVENANCE}: not an export's ({type(error).__name__}: {error})") from error
    if alone:
        raise UserError(
            f"{folder}: holds the repair alone, for {about['base']}, on which PEFT loads it; idp.load opens the run"
            f" itself ({about['run']})"
        )
    return Exported(folder, about)
