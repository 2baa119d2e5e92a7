"""Where analyses are kept: beside the records that they read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from idp.errors import UserError
from idp.store import write_json

FOLDER = "analysis"


class CannotWrite(UserError):
    """The folder cannot be written in, as where the records lie on a read-only disk."""


def folder_of(place: str | Path) -> Path:
    """The folder of analyses of a run, a record or a folder of runs; made where there is none."""
    path = Path(place).expanduser()
    folder = (path.parent if path.is_file() else path) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write(place: str | Path, name: str, result: dict[str, Any], text: str) -> list[Path]:
    """Writes an analysis as `name.json` and `name.md`; each file is replaced as a whole.

    Returns:
        the files.

    Raises:
        CannotWrite: there.
    """
    try:
        folder = folder_of(place)
        write_json(folder / f"{name}.json", result)
    except OSError as error:
        raise CannotWrite(
            f"{error.filename or place}: {error.strerror or error}; choose a folder with out=..."
        ) from error
    return [put(folder / f"{name}.md", text), folder / f"{name}.json"]


def put(file: Path, text: str) -> Path:
    """Writes a file whole or not at all, into a folder that is made if it is not there.

    Raises:
        CannotWrite: there.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text.rstrip() + "\n", encoding="utf-8")
        os.replace(temporary, file)
    except OSError as error:
        raise CannotWrite(f"{file}: cannot be written ({error.strerror or error})") from error
    return file
