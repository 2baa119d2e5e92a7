"""What comes from the hub, kept in the store: fetched once, and the same for every run that shares the store.

    repository   what a branch, tag or commit of a model was when it was first asked for
    commit       the same of a data set
    files        which files of a model were downloaded, and where they lie: in the hub's own cache (HF_HOME)
    text         the rows of a corpus, by part
    splits       the splits of a task's data set

A branch is resolved once for a store: a repository that moves on in the middle of a sweep does not change its later
cells. Without a store everything is asked for anew.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from idp import hub
from idp.config import Corpus
from idp.errors import UserError
from idp.progress import progress
from idp.store import CHECKPOINT, Identity, Product, Store, write_json

STAGE, VERSION = "fetch", 1
REPOSITORY, COMMIT, FILES, SPLITS = "repository.json", "commit.json", "files.json", "splits.json"

_noted: contextvars.ContextVar[list[Product] | None] = contextvars.ContextVar("noted", default=None)
_anew: contextvars.ContextVar[set[str] | None] = contextvars.ContextVar("anew", default=None)


def repository(path: str, revision: str | None, option: str, store: Store | None) -> hub.Repository:
    """As `hub.repository`, asked once for a store.

    Raises:
        UserError: as `hub.repository`.
    """
    if store is None:
        return hub.repository(path, revision, option)

    def make(folder: Path) -> None:
        write_json(folder / REPOSITORY, asdict(hub.repository(path, revision, option)))

    config = {"kind": "repository", "repository": path, "revision": revision}
    return hub.Repository(**_kept(store, config, make, path, moves=True).read(REPOSITORY))


def model(
    path: str, commit: str, option: str, store: Store | None, *, pickles: bool = True, code: bool = False
) -> Path:
    """As `hub.download`; where the store knows that all of it is there, the hub is not asked.

    Raises:
        UserError: as `hub.download`.
    """
    download = functools.partial(hub.download, path, commit, option, pickles=pickles, code=code)
    if store is None:
        return download()

    def make(folder: Path) -> None:
        place = download()
        found = sorted(file for file in place.rglob("*") if file.is_file())
        sizes = {str(file.relative_to(place)): file.stat().st_size for file in found}
        write_json(folder / FILES, {"folder": str(place), "files": sizes})

    product = _kept(store, _files_of(path, commit, pickles, code), make, path)
    return _whole(product) or download()  # the hub's cache was emptied, or is another one


def description(path: str, commit: str, option: str, code: bool) -> Path:
    """A folder with the config and the tokenizer of a model, of whose weights none need be there.

    Raises:
        UserError: as `hub.download`.
    """
    return hub.download(path, commit, option, code=code, weights=False)


def downloaded(path: str, commit: str, store: Store | None, *, pickles: bool = True, code: bool = False) -> Path | None:
    """The folder of a model that was downloaded for this store, if all of it is still there; nothing is fetched."""
    if store is None:
        return None
    place = store.root / STAGE / _identity(_files_of(path, commit, pickles, code)).key
    if not (place / FILES).is_file():
        return None
    return _whole(store.get(STAGE, place.name))


def texts(cfg: Corpus, store: Store | None) -> dict[str, list[str]]:
    """The rows of a corpus of the hub, by part.

    A fetch that was killed goes on with the part that it was at.

    Raises:
        UserError: rows without `corpus.text_field`.
        whatever `datasets` raises: the caller knows what to tell the user.
    """
    parts = list(cfg.files or cfg.splits or ["train"])
    if store is None:
        return {part: _rows(cfg, part, cfg.revision) for part in parts}
    assert cfg.path is not None  # `idp.checks` asks for it where the source is the hub
    commit = _commit(cfg.path, cfg.revision, store)

    def make(folder: Path) -> None:
        unfinished = folder / CHECKPOINT
        unfinished.mkdir(exist_ok=True)
        for part in parts:
            if not (unfinished / f"{part}.parquet").is_file():
                _write(unfinished / f"{part}.parquet", _rows(cfg, part, commit or cfg.revision))
        for part in parts:
            os.rename(unfinished / f"{part}.parquet", folder / f"{part}.parquet")

    names = ("path", "subset", "files", "splits", "text_field", "documents")
    asked = {name: value for name, value in asdict(cfg).items() if name in names}
    config = {"kind": "text", **asked, "commit": commit, "revision": None if commit else cfg.revision}
    product = _kept(store, config, make, cfg.name)
    return {part: _read(product.path / f"{part}.parquet") for part in parts}


def splits(
    dataset: str, name: str | None, options: Mapping[str, Any], store: Store | None
) -> dict[str, Callable[[], Any]]:
    """The splits of a data set of the hub, each with a function that loads it.

    Raises:
        whatever `datasets` raises: the caller knows what to tell the user.
    """
    from idp.store.plain import plain

    def make(folder: Path) -> None:
        loaded = hub.load_dataset(dataset, name=name, **options)
        if not all(hasattr(loaded[split], "save_to_disk") for split in loaded):
            raise _Passing(loaded)
        for number, split in enumerate(loaded):
            loaded[split].save_to_disk(folder / str(number))
        write_json(folder / SPLITS, list(loaded))

    if store is None:
        loaded = hub.load_dataset(dataset, name=name, **options)
        return {split: functools.partial(loaded.__getitem__, split) for split in loaded}
    config = {"kind": "splits", "dataset": dataset, "name": name, "options": plain(dict(options))}
    try:
        product = _kept(store, config, make, dataset, moves=True)
    except _Passing as passing:
        return {split: functools.partial(passing.loaded.__getitem__, split) for split in passing.loaded}
    return {
        split: functools.partial(_load_split, product.path / str(number))
        for number, split in enumerate(product.read(SPLITS))
    }


@contextlib.contextmanager
def noting() -> Iterator[list[Product]]:
    """The products that what is called inside took from the store, or fetched into it."""
    found: list[Product] = []
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)


@contextlib.contextmanager
def anew() -> Iterator[None]:
    """Inside, branches are resolved anew, once each: what the store knows of them is dropped."""
    token = _anew.set(set())
    try:
        yield
    finally:
        _anew.reset(token)


def _kept(
    store: Store, config: dict[str, Any], make: Callable[[Path], None], label: str, moves: bool = False
) -> Product:
    """The product of what is fetched; `moves`: the hub may say something else at another time."""
    dropped = _anew.get()
    if moves and dropped is not None and (key := _identity(config).key) not in dropped:
        dropped.add(key)
        shutil.rmtree(store.root / STAGE / key, ignore_errors=True)
    product = store.obtain(_identity(config, label), make)
    noted = _noted.get()
    if noted is not None:
        noted.append(product)
    return product


def _identity(config: dict[str, Any], label: str = "") -> Identity:
    return Identity(STAGE, None, config, VERSION, label)


def _files_of(path: str, commit: str, pickles: bool, code: bool) -> dict[str, Any]:
    return {"kind": "files", "repository": path, "commit": commit, "pickles": pickles, "code": code}


def _whole(product: Product) -> Path | None:
    """The folder of a downloaded model, if each of its files is there in its size."""
    about = product.read(FILES)
    place = Path(about["folder"])
    try:
        whole = all((place / name).stat().st_size == size for name, size in about["files"].items())
    except OSError:
        return None
    return place if whole else None


def _commit(path: str, revision: str | None, store: Store) -> str | None:
    """The commit of a data set's revision, resolved once for a store; None where the hub does not answer."""

    def make(folder: Path) -> None:
        write_json(folder / COMMIT, {"commit": hub.dataset_commit(path, revision)})

    config = {"kind": "commit", "dataset": path, "revision": revision}
    try:
        return _kept(store, config, make, path, moves=True).read(COMMIT)["commit"]
    except hub.NotAnswering:
        return None


def _rows(cfg: Corpus, part: str, revision: str | None) -> list[str]:
    """The text of each row of a part, as many as `corpus.documents` says."""
    options: dict[str, Any] = {"name": cfg.subset, "streaming": cfg.documents is not None and hub.reachable()}
    if revision is not None:
        options["revision"] = revision
    if cfg.files:
        options |= {"data_files": {part: cfg.files[part]}, "split": part}
    else:
        options["split"] = cfg.splits[part] if cfg.splits else part
    assert cfg.path is not None
    rows = hub.load_dataset(cfg.path, **options)
    found = []
    with progress(cfg.documents or 0, f"fetch {cfg.name} {part}", "documents", disable=not cfg.documents) as bar:
        for row in itertools.islice(rows, cfg.documents):
            if cfg.text_field not in row:
                raise UserError(
                    f"corpus {cfg.name}: the hub's {cfg.path} has no column {cfg.text_field} (it has"
                    f" {', '.join(row)}): set corpus.text_field"
                )
            found.append(row[cfg.text_field])
            bar.update(1)
    return found


def _write(file: Path, rows: list[str]) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    table = arrow.table({"text": arrow.array(rows, arrow.large_string())})
    temporary = file.with_suffix(".tmp")
    parquet.write_table(table, temporary, compression="zstd")
    os.replace(temporary, file)


def _read(file: Path) -> list[str]:
    from pyarrow import parquet

    return parquet.read_table(file, columns=["text"]).column(0).to_pylist()


def _load_split(folder: Path) -> Any:
    from datasets import Dataset

    return Dataset.load_from_disk(str(folder))


class _Passing(Exception):
    """A data set that is read as a stream and so is not kept."""

    def __init__(self, loaded: Any):
        super().__init__()
        self.loaded = loaded
