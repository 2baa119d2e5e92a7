"""Records, wherever they lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from idp.errors import UserError
from idp.track.record import RECORD, SCHEMA_VERSION


def collect(places: list[str]) -> list[dict[str, Any]]:
    """Every record in the given files and folders, by name.

    Raises:
        UserError: nothing is there, or a record cannot be read or is of another schema.
    """
    files: list[Path] = []
    for place in map(Path, places):
        if not place.exists():
            raise UserError(f"{place}: there is nothing here; give a folder of runs, such as outputs/runs")
        files += [place] if place.is_file() else sorted(place.rglob(RECORD))
    if not files:
        raise UserError(f"{', '.join(places)}: no record here; `python -m idp.run` makes one")
    return sorted(map(_read, files), key=lambda record: record["idp"]["name"])


def _read(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        version = record["idp"]["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a record ({type(error).__name__}: {error})") from error
    if version != SCHEMA_VERSION:
        raise UserError(f"{file}: a record of schema {version}; this version reads {SCHEMA_VERSION}")
    return record
