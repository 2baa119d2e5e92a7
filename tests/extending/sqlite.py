"""The rows of a column of an SQLite database: a document each, in the order of the table."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from idp import config
from idp.config import option
from idp.errors import UserError

if TYPE_CHECKING:
    from idp.store import Store


@dataclass
class SqliteCorpus(config.Corpus):
    table: str = option("the table that has the text, in the column text_field")

    def check(self) -> None:
        for name in (self.table, self.text_field):
            if not name.isidentifier():
                raise UserError(f"corpus: {name} is no name of a table or column; give one word")

    def read(self, data_dir: str | None, store: Store | None) -> tuple[dict[str, list[str]], str]:
        file = Path(self.path or "").expanduser()
        if not file.is_file():
            raise UserError(f"corpus.path={self.path}: there is no such file; name an SQLite database")
        try:
            with closing(sqlite3.connect(f"file:{file.absolute()}?mode=ro", uri=True)) as database:
                rows = database.execute(f"select {self.text_field} from {self.table} order by rowid").fetchall()
        except sqlite3.Error as error:
            raise UserError(f"corpus.path={self.path}: {error}") from error
        return {"train": [str(text) for (text,) in rows if text]}, self.path
