"""A file of the user's own: txt, jsonl or parquet, or the .gz of one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from idp import config, text_files
from idp.errors import UserError

if TYPE_CHECKING:
    from idp.store import Store


@dataclass
class LocalCorpus(config.Corpus):
    def read(self, data_dir: str | None, store: Store | None) -> tuple[dict[str, list[str]], str]:
        if self.path is None:
            raise UserError("corpus.path is not set: corpus=local corpus.path=FILE (txt, jsonl or parquet, or .gz)")
        return {"train": text_files.read_documents(Path(self.path), self.text_field)}, self.path
