"""`only=repair`: the adapters alone, for a checkpoint that is there already, which they name."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from idp import models
from idp.compress import freeze
from idp.compress.terminal import quiet
from idp.config import WEIGHTS
from idp.errors import UserError
from idp.export import repair, vllm
from idp.export.card import write_repair_card
from idp.export.options import ExportOptions
from idp.export.run import Run
from idp.models.weight_files import WeightFiles
from idp.recover.weight_side import WeightSide

REPAIR = "repair"


def check(run: Run, options: ExportOptions) -> None:
    """Refuses a repair that does not stand beside a checkpoint, before anything is opened.

    Raises:
        UserError: the run repaired nothing, its repair is in the checkpoint's own scales, or nothing says which
            checkpoint the adapters are for.
    """
    if run.repair is None:
        raise UserError(f"record={options.record}: the run repaired nothing (recovery=none); leave out only={REPAIR}")
    side = WeightSide.of(run.repair.path)
    if side.scales is not None:
        raise UserError(
            f"only={REPAIR}: recovery={side.kind} changes the scales of the quantised weights, which are in the"
            f" checkpoint itself; leave out only={REPAIR}"
        )
    base_of(run, options)


def base_of(run: Run, options: ExportOptions) -> str:
    """The checkpoint that the adapters are for: `name`, else what others compressed, or the dense model that was kept.

    Raises:
        UserError: it is known to nobody: the run compressed a model itself, and `name` does not say where that is.
    """
    if options.name:
        return options.name
    if WEIGHTS in run.compressor.needs:
        about = run.compressed.manifest["config"].get("external") or {}
        return run.compressor.origin if about.get("kind") == "hub" else _place(run.compressor.origin)
    if run.compressor.label == "none" and run.model.path and run.model.source in ("hub", "local"):
        return run.model.path if run.model.source == "hub" else _place(run.model.path)
    raise UserError(
        f"only={REPAIR}: the checkpoint that the adapters are for is not known; name it with name=<folder or hub id>,"
        f" as `idp export record={options.record}` without only={REPAIR} has written it"
    )


def write(run: Run, folder: Path, options: ExportOptions) -> tuple[dict[str, Any], list[str]]:
    """Writes the adapters and their card: what the export's provenance says of them, and what vLLM would not load.

    Raises:
        UserError: new values of parameters that the checkpoint does not hold as they are, or a kind that cannot be
            exported.
    """
    base = base_of(run, options)
    with quiet():
        loaded = models.open_model(models.model_folder(run.compressed), run.model)
        beside = repair.save(run, loaded, folder, base, plain=plain_tensors(run))
    lora = folder / repair.LORA
    refused = vllm.faults(lora) if lora.is_dir() else []
    rank = vllm.max_lora_rank(lora) if lora.is_dir() and not refused else None
    (folder / "README.md").write_text(write_repair_card(run, base=base, beside=beside, rank=rank), encoding="utf-8")
    if (run.compressed.path / "recipe.yaml").is_file() and WEIGHTS not in run.compressor.needs:
        shutil.copy(run.compressed.path / "recipe.yaml", folder)
    return {"only": REPAIR, "base": base, "repair": list(beside)}, refused


def plain_tensors(run: Run) -> Mapping[str, tuple[int, ...]]:
    """The tensors that the checkpoint holds as they are, by name; those that it has packed are not among them."""
    assert run.repair is not None
    if WeightSide.of(run.repair.path).values is None:
        return {}  # nobody asks, and a checkpoint on the hub need not be here
    if WEIGHTS not in run.compressor.needs:
        own = WeightFiles(models.model_folder(run.compressed), "the compressed model").entries
        packed = {f"{layer.rpartition('.')[0]}.weight" for layer in freeze.stored_grids(run.compressed) or ()}
        return {name: tuple(entry.shape) for name, entry in own.items() if name not in packed}
    source = run.compressor.find()
    place = run.compressor.fetch(source, None)
    if place.is_file():
        raise UserError(f"only={REPAIR}: {place.name} is a GGUF file, whose tensors have other names than its values")
    return {name: tuple(entry.shape) for name, entry in WeightFiles(place, str(place)).entries.items()}


def _place(path: str) -> str:
    """A folder or file as a program finds it from whichever folder it is started in; what is not here, as given."""
    place = Path(path).expanduser()
    return str(place.absolute()) if place.exists() else path
