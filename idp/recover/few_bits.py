"""A repair with its prompts stored in few bits: a product made from the trained one, which is not trained again."""

from __future__ import annotations

import shutil
from pathlib import Path

from idp import models
from idp.config import Storage
from idp.prompting.bank import PromptBank
from idp.recover import bases
from idp.recover.identity import stored_identity
from idp.recover.making import HISTORY, REPAIR, SEARCH, Sources, tensor_bytes
from idp.recover.weight_side import FOLDERS
from idp.store import Product, Store, write_json


def stored(repair: Product, options: Storage, sources: Sources, store: Store) -> Product:
    """The repair, its prompts stored as asked; all else of it is as it was."""
    base = models.model_folder(sources.compressed)

    def make(folder: Path) -> None:
        bank = PromptBank.load(repair.path / "bank")
        bank.save(folder / "bank", models.open_empty(base, sources.model).model.config, str(base), options)
        for name in (*FOLDERS, HISTORY, SEARCH):
            source = repair.path / name
            if source.is_dir():
                shutil.copytree(source, folder / name, dirs_exist_ok=True)
            elif source.exists():
                shutil.copy(source, folder / name)
        write_json(folder / REPAIR, {**repair.read(REPAIR), "bytes": tensor_bytes(folder)})
        bases.make_relative(folder)

    return store.obtain(stored_identity(repair.key, options), make, after=[repair])
