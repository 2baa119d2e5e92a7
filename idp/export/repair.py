"""The repair beside an exported checkpoint, each part of it in a folder of its own.

lora/       low-rank updates, in PEFT's format
prompts/    prompts, each in PEFT's format, and what chose among them
values/     new values of the checkpoint's own parameters
own/        what the repair's kind writes, which says how it is loaded

New scales of quantised weights are in the checkpoint itself, which is then the repaired model.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from idp.errors import UserError
from idp.export.run import Run
from idp.models import LoadedModel
from idp.models.weight_files import WeightFiles
from idp.prompting.bank import PromptBank
from idp.prompting.states import embedded, flatten, run_prompt
from idp.recover import rescaling, values
from idp.recover.context import OWN
from idp.recover.selection import DESCRIPTION, STATE
from idp.recover.weight_side import SCALES, VALUES, WeightSide, maker
from idp.store import Product, write_json

if TYPE_CHECKING:
    import torch

PROMPTS, LORA = "prompts", "lora"
PARTS = (LORA, PROMPTS, VALUES, OWN, SCALES)


def check(run: Run) -> None:
    """Refuses a repair that no export can hold, before anything is written.

    Raises:
        UserError: its kind is not here, or says that it cannot be exported.
    """
    side = WeightSide.of(run.repair.path) if run.repair is not None else None
    if side is not None and side.own is not None:
        with tempfile.TemporaryDirectory() as folder:
            maker(side.kind, "export").export(side.own, Path(folder))


def put_within(run: Run, loaded: LoadedModel) -> LoadedModel:
    """The compressed model as it is exported: with the repair's scales, where it has new ones."""
    scales = _scales(run)
    return rescaling.attach(loaded, scales) if scales is not None else loaded


def put_in_grids(run: Run, grids: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The grids on which its weights then lie."""
    scales = _scales(run)
    return rescaling.in_grids(grids, scales) if scales is not None else grids


def _scales(run: Run) -> Path | None:
    return WeightSide.of(run.repair.path).scales if run.repair is not None else None


def save(
    run: Run, loaded: LoadedModel, folder: Path, base: str, plain: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, str]:
    """Writes a run's repair under `folder`; what was written, of `PARTS`, each with what the card says of its loading.

    Args:
        run: the run.
        loaded: its model: a prompt's adapter says how many layers and heads it is for.
        folder: the export's folder, with the checkpoint in it.
        base: what the adapters call the checkpoint that they are for.
        plain: shapes of the tensors that the checkpoint holds as they are; None: it is in `folder`.

    Raises:
        UserError: new values of parameters that the checkpoint does not hold as they are, or a kind that cannot be
            exported.
    """
    made: dict[str, str] = {}
    if run.repair is None:
        return made
    side = WeightSide.of(run.repair.path)
    if side.scales is not None:
        made[SCALES] = (
            "The scales of its quantised weights are the repaired ones: the checkpoint is the repaired model."
        )
    if side.values is not None:
        made[VALUES] = _save_values(side.kind, side.values, folder, plain)
    if side.adapter is not None:
        _save_lora(run.repair, folder / LORA, base)
        made[LORA] = "Under `lora/` is the adapter that repairs it, for `PeftModel.from_pretrained(model, folder)`."
    if side.own is not None:
        (folder / OWN).mkdir()
        made[OWN] = maker(side.kind, "export").export(side.own, folder / OWN)
    if (run.repair.path / "bank").is_dir():
        _save_prompts(run, run.repair, loaded, folder / PROMPTS, base)
        made[PROMPTS] = (
            "Under `prompts/` are the soft prompts that repair it, each an adapter for"
            " `PeftModel.from_pretrained(model, folder)`. `prompts/bank.json` lists them and says how one was chosen"
            " for an input; PEFT itself holds one prompt for a whole batch."
            if any(run.repair.read("bank/bank.json")["lengths"])
            else "`prompts/bank.json` says how one of the experts was chosen for an input; none of them has tokens."
        )
    return made


def weight_side(folder: Path, beside: Collection[str], kind: str) -> WeightSide:
    """The weight side of an exported repair.

    Args:
        folder: the export's.
        beside: which parts were written.
        kind: the recovery that made it.
    """
    return WeightSide(kind, *(folder / name if name in beside else None for name in (LORA, VALUES, OWN)))


def _save_values(kind: str, stored: Path, folder: Path, plain: Mapping[str, tuple[int, ...]] | None) -> str:
    """New values of parameters that the checkpoint has under the same names, so that anybody can put them in."""
    if plain is None:
        plain = {name: tuple(entry.shape) for name, entry in WeightFiles(folder, str(folder)).entries.items()}
    for name, value in values.load(stored).items():
        if plain.get(name) != tuple(value.shape):
            raise UserError(
                f"recovery={kind} cannot be exported with this checkpoint: it changes {name}, which is not written"
                " as a plain tensor (packed, or under another name); idp.load opens the run itself"
            )
    shutil.copytree(stored, folder / VALUES)
    return (
        "Under `values/` are the repaired values of some of its parameters. To put them in:"
        f' `model.load_state_dict(safetensors.torch.load_file("{VALUES}/{values.FILE}"), strict=False)`.'
    )


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
    stored = [number for number in range(len(bank)) if (folder / f"prompt_{number}").is_dir()]  # the empty one is not
    for number in stored:
        (folder / f"prompt_{number}").rename(folder / f"prompt_{number}.part")  # a name may be another's `prompt_N`
    for number in stored:
        (folder / f"prompt_{number}.part").rename(folder / bank.names[number])
    recovery = run.record["idp"]["config"]["recovery"]
    described = json.loads((folder / "bank.json").read_text(encoding="utf-8"))
    described |= {"recovery": recovery["kind"], "base_model_name_or_path": base, "folders": bank.names}
    if len(bank) > 1:
        described["selector"] = recovery.get("selector")
        if run.selector is not None:  # what it learned, in tensors
            shutil.copy(run.selector.path / STATE, folder)
            described["fitted"] = {"file": STATE, **run.selector.read(DESCRIPTION)}
    write_json(folder / "bank.json", described)
