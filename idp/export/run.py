"""The run that is exported: its record, and the stored artifacts that the record names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from idp import finished, models
from idp.config import Compressor, Model
from idp.export.options import ExportOptions
from idp.records.schema import Record
from idp.store import Product


@dataclass
class Run:
    """A finished run: its record, its compressed model and repair, and where its dense model's own files are."""

    record: Record
    model: Model
    compressor: Compressor
    compressed: Product
    repair: Product | None
    dense_folder: Path | None
    selector: Product | None = None  # where one was fitted to choose among the repair's prompts


def find_run_to_export(options: ExportOptions) -> Run:
    """The run of a record, its artifacts verified.

    Raises:
        UserError: no record there, or its artifacts are gone or damaged.
    """
    run = finished.find_run(options.record, options.store)
    compressed, repair = run.made("compress"), run.product("recover")
    return Run(run.record, run.model, run.compressor, compressed, repair, _dense_folder(run), run.product("select"))


def _dense_folder(run: finished.Finished) -> Path | None:
    """The base model's own folder, where it has one: licence and card are taken from there."""
    loaded = run.record["idp"]["stages"]["load"]
    here = loaded is not None and any((place / "load" / loaded["key"]).is_dir() for place in run.places)
    if run.model.source not in ("hub", "local") or not here:
        return None
    source = run.made("load")
    return models.model_folder(source) if source.read("source.json")["folder"] else None
