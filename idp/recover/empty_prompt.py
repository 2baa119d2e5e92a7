"""A repair whose bank also holds the empty prompt: a product made from the trained one, which is not trained again.

An input that is given it is read as the compressed model reads it (behind the adapter, where there is one).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from idp.prompting.bank import CENTRES_FILE, EMPTY
from idp.recover.identity import with_empty_identity
from idp.store import MANIFEST, Product, Store, write_json


def joined(repair: Product, store: Store) -> Product:
    """The repair with a prompt of no tokens as its bank's last; all else of it is as it was.

    Centres of the text that prompts were trained on are left out: the empty one was trained on none, so what chooses by
    centres is fitted on held-out text.
    """

    def make(folder: Path) -> None:
        ignored = shutil.ignore_patterns(MANIFEST, CENTRES_FILE)
        shutil.copytree(repair.path, folder, dirs_exist_ok=True, ignore=ignored)
        described = repair.read("bank/bank.json")
        names, lengths = [*described["names"], EMPTY], [*described["lengths"], 0]
        write_json(folder / "bank" / "bank.json", {**described, "names": names, "lengths": lengths})

    return store.obtain(with_empty_identity(repair.key), make, after=[repair])
