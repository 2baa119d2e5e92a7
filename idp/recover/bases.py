"""The model that a stored repair's files name: relative to the file, where it is in the store, which may be moved."""

from __future__ import annotations

import json
import os
from pathlib import Path

from idp.store import write_json

NAMING = ("adapter_config.json", "bank.json")
BASE = "base_model_name_or_path"


def make_relative(folder: Path) -> None:
    """Has what a repair's files name relative to each file, where it is inside the store; others stay as they are.

    A product has the same depth while it is made and afterwards, so the paths hold for both.

    Args:
        folder: the product's own.
    """
    store = folder.parent.parent
    for file in (file for name in NAMING for file in folder.rglob(name)):
        described = json.loads(file.read_text(encoding="utf-8"))
        base = described.get(BASE)
        if base and Path(base).is_relative_to(store):
            write_json(file, {**described, BASE: os.path.relpath(base, file.parent)})
        (file.parent / "README.md").unlink(missing_ok=True)  # PEFT's template for a page on the hub, which names it too
