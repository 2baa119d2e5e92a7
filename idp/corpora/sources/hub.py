"""A data set of the hub, fetched once for a store; or files of its name in the folder of the user, which come first."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from idp import config, fetched, hub, text_files
from idp.errors import UserError

if TYPE_CHECKING:
    from idp.store import Store


@dataclass
class HubCorpus(config.Corpus):
    def read(self, data_dir: str | None, store: Store | None) -> tuple[dict[str, list[str]], str]:
        """Of files `text/<name>*` in `data_dir`, one with `test` in its name is the perplexity part and nothing else,
        so that nobody trains on a test split; one with `valid` is the heldout part."""
        files = _files_of(self.name, data_dir)
        if not files:
            return _fetched(self, data_dir, store), f"the hub's {self.path}"
        pools: dict[str, list[str]] = {"train": []}
        for file in files:
            pools.setdefault(_part_of(file), []).extend(text_files.read_documents(file, self.text_field))
        return pools, ", ".join(map(str, files))


def _files_of(name: str, data_dir: str | None) -> list[Path]:
    folder = Path(data_dir or "") / "text"
    if data_dir is None or not folder.is_dir():
        return []
    return sorted(path for path in folder.glob(f"{name}*") if text_files.is_text_file(path))


def _part_of(file: Path) -> str:
    words = set(re.split(r"[^a-z0-9]+", file.name.lower()))
    if "test" in words:
        return "perplexity"
    return "heldout" if words & {"valid", "validation", "heldout"} else "train"


def _fetched(cfg: HubCorpus, data_dir: str | None, store: Store | None) -> dict[str, list[str]]:
    try:
        pools = fetched.texts(cfg, store)
    except UserError:
        raise
    except Exception as error:  # each kind of trouble has its own class; all of them mean that it cannot be had
        raise UserError(
            f"corpus {cfg.name}: the hub's {cfg.path} cannot be read ({hub.reason(error)}). Put a file "
            f"text/{cfg.name}.jsonl.gz (or .txt) into {data_dir or 'a folder given as data_dir=FOLDER'}, "
            f"use corpus=embedded, or fetch it where there is a network: python -m idp.fetch corpus={cfg.name}"
        ) from error
    for name, texts in pools.items():
        if any(text_files.TITLE.match(text.rstrip("\n")) for text in texts[:100]):
            pools[name] = text_files.wikitext_articles(texts)
    return pools
