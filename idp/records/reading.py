"""A record, read again: what it says, and the folders in which its stored products may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from idp.errors import UserError
from idp.records.record import RECORD, load
from idp.records.schema import Record, Stage
from idp.status import STATUS


def read(place: str | Path, label: str) -> tuple[Record, Path]:
    """The record of a run, and its file.

    Args:
        place: the run's `record.json`, or its folder.
        label: how the user named it, for messages.

    Raises:
        UserError: there is no record, because the run failed perhaps, or it is not one.
    """
    file = _file(Path(place).expanduser(), label)
    record = load(file, label)
    try:
        record["idp"]["config"]["store"], cast(Stage, record["idp"]["stages"]["load"])["key"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{label}: not a record of idp.run ({type(error).__name__}: {error})") from error
    return record, file


def stores(named: str | Path, folder: str | Path | None = None) -> list[Path]:
    """Where the store of a run may be: beside a folder above the run, or where its config says.

    A run that was moved or copied with its store has its own, whatever is still where its config says.

    Args:
        named: the store in the run's config, as seen from where the run was started.
        folder: of the run's record; None: it is not from a file.
    """
    named = Path(named).expanduser()
    if folder is None:
        return [named]
    above = Path(folder).absolute().parents
    beside = [place / "store" for place in above[:4]]
    there = [place for place in beside if place.is_dir()]
    return [*there, named] if there else [named, *beside[min(1, len(beside) - 1) :][:1]]


def _file(path: Path, label: str) -> Path:
    file = path / RECORD if path.is_dir() else path
    if file.is_file():
        return file.absolute()
    status = file.parent / STATUS
    if status.is_file():
        try:
            values = json.loads(status.read_text(encoding="utf-8"))
            state, stage, reason = values["state"], values["stage"], values["error"]
        except (OSError, ValueError, KeyError, TypeError):
            state = stage = reason = None
        if state == "failed":
            raise UserError(f"{label}: the run failed ({reason}); mend that and run its command again")
        if state in ("running", "queued"):
            raise UserError(
                f"{label}: the run has not finished (it was at {stage}); wait for its {RECORD}, or, if it was killed,"
                " run its command again: it continues where it stopped"
            )
    if path.is_dir():
        raise UserError(f"{label}: there is no {RECORD} in it; a run writes it at its end")
    raise UserError(f"{label}: no such file or folder; name a run's folder or its {RECORD}")
