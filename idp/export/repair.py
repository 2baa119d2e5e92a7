"""The repair beside an exported checkpoint, in PEFT's format, with the checkpoint as its base model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from idp.export.run import Run
from idp.models import LoadedModel
from idp.prompting.bank import PromptBank
from idp.prompting.states import embedded, flatten, run_prompt
from idp.recover.selection import DESCRIPTION, STATE
from idp.store import Product, write_json

if TYPE_CHECKING:
    import torch

PROMPTS, LORA = "prompts", "lora"


def save(run: Run, loaded: LoadedModel, folder: Path, base: str) -> list[str]:
    """Writes a run's repair under `folder`; what was written, of `lora` and `prompts`.

    Args:
        run: the run.
        loaded: its model: a prompt's adapter says how many layers and heads it is for.
        folder: the export's folder.
        base: what the adapters call the checkpoint that they are for.
    """
    made = []
    if run.repair is None:
        return made
    if (run.repair.path / "adapter").is_dir():
        _save_lora(run.repair, folder / LORA, base)
        made.append(LORA)
    if (run.repair.path / "bank").is_dir():
        _save_prompts(run, run.repair, loaded, folder / PROMPTS, base)
        made.append(PROMPTS)
    return made


def _ahead(bank: PromptBank, loaded: LoadedModel) -> torch.Tensor | None:
    """The BOS that stands before the prompts, as rows like theirs [tokens, width]: PEFT puts nothing before one."""
    import torch

    tokens = bank.beginning.ahead_of_prompt if bank.beginning is not None else []
    if not tokens:
        return None
    rows = embedded(loaded.model, tokens)
    with torch.no_grad():
        return flatten(run_prompt(loaded.model, rows)) if bank.kind == "prefix" else rows


def _save_lora(repair: Product, folder: Path, base: str) -> None:
    folder.mkdir()
    shutil.copy(repair.path / "adapter" / "adapter_model.safetensors", folder)
    described = repair.read("adapter/adapter_config.json")
    write_json(folder / "adapter_config.json", {**described, "base_model_name_or_path": base})


def _save_prompts(run: Run, repair: Product, loaded: LoadedModel, folder: Path, base: str) -> None:
    """One adapter per prompt, in a folder of its name, and what chose between them in `bank.json`."""
    bank = PromptBank.load(repair.path / "bank")
    bank.save(folder, loaded.model.config, base, ahead=_ahead(bank, loaded))
    for number in range(len(bank)):
        (folder / f"prompt_{number}").rename(folder / f"prompt_{number}.part")  # a name may be another's `prompt_N`
    for number, name in enumerate(bank.names):
        (folder / f"prompt_{number}.part").rename(folder / name)
    recovery = run.record["idp"]["config"]["recovery"]
    described = json.loads((folder / "bank.json").read_text(encoding="utf-8"))
    described |= {"recovery": recovery["kind"], "base_model_name_or_path": base, "folders": bank.names}
    if len(bank) > 1:
        described["selector"] = recovery.get("selector")
        if run.selector is not None:  # what it learned, in tensors
            shutil.copy(run.selector.path / STATE, folder)
            described["fitted"] = {"file": STATE, **run.selector.read(DESCRIPTION)}
    write_json(folder / "bank.json", described)
