"""`model=<hub id, folder or GGUF file>`: what such a word says of a model that no YAML describes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", flags=re.ASCII)
GGUF = ".gguf"
HINT = "a model of your own goes by its hub id (model=meta-llama/Llama-2-7b-hf), its folder or its GGUF file"


def directly(word: str) -> dict[str, Any] | None:
    """The options of the model that a word names by itself; None for a word that is a name, such as `tiny_llama`.

    A folder or file that is there is meant before the hub's of the same words. What can only be a path is taken for one
    even where nothing is there, so that whoever looks for it can say so.
    """
    path = Path(word).expanduser()
    if not word.strip("./~"):
        return None
    if path.is_dir() or (path.is_file() and path.suffix == GGUF):
        return {"name": name_of(path), "source": "local", "path": word}
    if HUB_ID.fullmatch(word) and path.suffix != GGUF:
        return {"name": word, "source": "hub", "path": word}
    if "/" in word or path.suffix == GGUF:
        return {"name": name_of(path), "source": "local", "path": word}
    return None


def is_hub_id(word: str) -> bool:
    """Whether a word may be the id of a repository on the hub: an owner, a slash and a name."""
    return HUB_ID.fullmatch(word) is not None


def name_of(path: Path) -> str:
    """What tables call the model of a folder or a GGUF file: its last part, without the ending of a file."""
    place = path.absolute()
    return (place.stem if place.suffix == GGUF else place.name) or "local"
