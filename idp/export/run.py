"""The run that is exported: its record, and the stored artifacts that the record names."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from idp import models
from idp.config import Calibration, Compressor, Model, Quantization, Sparsity
from idp.errors import UserError
from idp.export.options import Options
from idp.store import Product, Store
from idp.track.record import RECORD


@dataclass
class Run:
    """A finished run: its record, its compressed model and repair, and where its dense model's own files are."""

    record: dict[str, Any]
    model: Model
    compressor: Compressor
    compressed: Product
    repair: Product | None
    dense_folder: Path | None
    selector: Product | None = None  # where one was fitted to choose among the repair's prompts


def find(options: Options) -> Run:
    """The run of a record, its artifacts verified.

    Raises:
        UserError: no record there, or its artifacts are gone or damaged.
    """
    file = _record_file(options.record)
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        about = record["idp"]
        config, stages = about["config"], about["stages"]
        # The dtype that was measured, also on a machine whose `auto` is another.
        model = replace(Model(**config["model"]), dtype=record["config"]["model_dtype"])
        compressor = compressor_of(config["compressor"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"record={options.record}: not a record of idp.run ({type(error).__name__}: {error})"
        ) from error
    store = _store(options, config["store"], file, stages["compress"]["key"])
    repair = stages["recover"]
    return Run(
        record,
        model,
        compressor,
        store.get("compress", stages["compress"]["key"]),
        store.get("recover", repair["key"]) if repair else None,
        _dense_folder(model, store, stages["load"]["key"]),
        store.get("select", stages["select"]["key"]) if stages.get("select") else None,
    )


def compressor_of(values: dict[str, Any]) -> Compressor:
    """A record's compressor as the schema has it."""
    parts = {"sparsity": Sparsity, "quantization": Quantization, "calibration": Calibration}
    return Compressor(**{key: parts[key](**value) if key in parts else value for key, value in values.items()})


def _record_file(place: str) -> Path:
    path = Path(place).expanduser()
    file = path / RECORD if path.is_dir() else path
    if not file.is_file():
        missing = f"there is no {RECORD} in it; a run writes it at its end" if path.is_dir() else "no such file"
        raise UserError(f"record={place}: {missing}")
    return file.absolute()


def _store(options: Options, stated: str, file: Path, key: str) -> Store:
    """The store that holds product `key`: the one that is named, the record's, or the one beside the run's folder."""
    beside = file.parents[2] / "store" if len(file.parents) > 2 else file.parent / "store"
    # The record's may be relative to a folder that it does not name.
    places = [Path(options.store).expanduser()] if options.store else [Path(stated).expanduser(), beside]
    found = [place for place in places if (place / "compress" / key).is_dir()]
    if not found:
        raise UserError(
            f"record={options.record}: its model ({key[:12]}) is not in {' or in '.join(map(str, places))}; name the"
            " run's store with store=..., or run it again"
        )
    return Store(found[0])


def _dense_folder(model: Model, store: Store, key: str) -> Path | None:
    """The base model's own folder, where it has one: licence and card are taken from there."""
    if model.source not in ("hub", "local") or not (store.root / "load" / key).is_dir():
        return None
    source = store.get("load", key)
    return models.model_folder(source) if source.read("source.json")["folder"] else None
