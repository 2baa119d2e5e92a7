"""What a store holds: each product in words, its size, when it was made and last used, and which runs need it."""

from __future__ import annotations

import calendar
import contextlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from idp.errors import UserError
from idp.records.record import RECORD
from idp.status import LOCK, STATUS, TIME
from idp.store import MANIFEST
from idp.store.lease import TAKEN_AFTER_SECONDS
from idp.store.verification import VERIFIED

KEY = re.compile(r"[0-9a-f]{64}")
# Of a folder that is no product: damaged and set aside, being made or left by a killed run, or half removed.
LEFTOVERS = {".damaged-": "damaged, set aside", ".part": "unfinished", ".removed-": "half removed"}
NOT_STAGES = ("locks", VERIFIED)
# Stages whose products a record names, each made for its own sake. What other stages make of one belongs to it.
NAMED = ("load", "compress", "recover")


@dataclass
class StoreItem:
    """One folder of a store.

    Attributes:
        place: the folder.
        kind: its stage.
        bytes: of its files.
        manifest: as the store wrote it; empty for a folder that is no product.
        runs: the names of the runs whose records need it.
    """

    place: Path
    kind: str
    bytes: int
    manifest: dict[str, Any]
    runs: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        return self.place.name.partition(".")[0]

    @property
    def left(self) -> str | None:
        """What it is where it is no product."""
        if self.manifest:
            return None
        return next((words for mark, words in LEFTOVERS.items() if mark in self.place.name), "no manifest")

    @property
    def parent(self) -> str | None:
        return self.manifest.get("parent")

    @cached_property
    def used(self) -> float:
        """When it was last asked for, or made: seconds since the epoch."""
        return self.place.stat().st_mtime

    @property
    def made(self) -> float:
        """When it was made: seconds since the epoch."""
        return _when(self.manifest.get("created")) or self.used

    @property
    def lock(self) -> Path:
        """Its maker's lease."""
        return self.place.parents[1] / "locks" / f"{self.kind}-{self.key}.lock"

    @property
    def leased(self) -> bool:
        """Whether a process that lives may be making it."""
        return _touched(self.lock)

    @property
    def stands_alone(self) -> bool:
        """Whether a record must name it for it to be needed: a model or a repair, and not what was measured of one."""
        return self.kind in NAMED and (self.kind != "compress" or self._has_weights)

    @property
    def _has_weights(self) -> bool:
        return any(name.startswith("model/") for name in self.manifest.get("files", ()))


class Inventory:
    """The products of a store, held to the records of runs.

    Args:
        root: the store.
        runs: folders of runs; they need not exist.

    Raises:
        UserError: there is no store.
    """

    def __init__(self, root: Path, runs: Sequence[Path]):
        if not (root / "locks").is_dir() and not any(root.glob(f"*/*/{MANIFEST}")):  # a copy may lack what is empty
            raise UserError(f"{root}: no store is there; name its folder, such as outputs/store")
        self.root, self.runs = root, runs
        self.items = sorted(_items(root), key=lambda item: (item.kind, -item.bytes, item.place.name))
        self._words: dict[str, str] = {}
        self._by_key = {item.key: item for item in self.items if item.manifest}
        self._name_runs()

    def words(self, item: StoreItem) -> str:
        """What an item is, from the model on: `smollm2_135m_instruct gptq4 prompt`."""
        if item.left:
            return item.left
        label = _label(item)
        parent = self._by_key.get(item.parent or "")
        return (
            f"{self.words(parent)} {label}" if parent is not None and label not in self.words(parent).split() else label
        )

    @cached_property
    def needed(self) -> set[str]:
        """Keys that a record names, what those are made from, and what was measured of them.

        A product of no model (texts, guards) is always among them, and one whose model is not in this store.
        """
        found: set[str] = set()
        for item in self._by_key.values():
            if item.runs or (not item.stands_alone and item.parent not in self._by_key):
                found |= {item.key, *self._ancestors(item)}
        while more := {
            item.key
            for item in self._by_key.values()
            if item.key not in found and not item.stands_alone and item.parent in found
        }:
            found |= more
        return found

    def going_on(self) -> tuple[str, float] | None:
        """The run that began first of those that are going on or queued, and when; None where there is none."""
        found = [(folder.name, began) for folder in self._folders() if (began := _began(folder)) is not None]
        return min(found, key=lambda run: run[1]) if found else None

    @property
    def records(self) -> int:
        """How many records there are."""
        return sum((folder / RECORD).is_file() for folder in self._folders())

    def _name_runs(self) -> None:
        """Writes into each item which records name its key."""
        for folder in self._folders():
            with contextlib.suppress(OSError):
                text = (folder / RECORD).read_text(encoding="utf-8")
                for key in sorted(set(KEY.findall(text)) & self._by_key.keys()):
                    self._by_key[key].runs.append(folder.name)

    def _folders(self) -> list[Path]:
        found = (runs.glob(f"*/{name}") for runs in self.runs for name in (STATUS, RECORD))
        return sorted({path.parent for paths in found for path in paths})

    def _ancestors(self, item: StoreItem) -> Iterator[str]:
        while (parent := self._by_key.get(item.parent or "")) is not None:
            yield parent.key
            item = parent


def _items(root: Path) -> Iterator[StoreItem]:
    for place in root.glob("*/*"):
        if place.parent.name not in NOT_STAGES and place.is_dir():
            size = sum(_size(file) for file in place.rglob("*"))
            plain = KEY.fullmatch(place.name) is not None
            yield StoreItem(place, place.parent.name, size, _json(place / MANIFEST) if plain else {})


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:  # it is gone meanwhile
        return 0


def _label(item: StoreItem) -> str:
    """What its maker called it; a product from before that was written down is told from its config."""
    if label := item.manifest.get("label"):
        return label
    config = item.manifest.get("config") or {}
    quantization, sparsity = config.get("quantization") or {}, config.get("sparsity") or {}
    if item.kind == "compress":
        words = [f"{sparsity['method']}{round(100 * sparsity.get('level', 0))}"] if sparsity.get("method") else []
        words += [f"{quantization['method']}{quantization.get('bits')}"] if quantization.get("method") else []
        return "_".join(words) or ("external" if "external" in config else "none")
    recovery = config.get("recovery")
    named = recovery.get("kind") if isinstance(recovery, dict) else None
    for name in ("task", "corpus", "kind"):
        named = named or (config.get(name) if isinstance(config.get(name), str) else None)
    return str(named)[:40] if named else item.kind


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _began(folder: Path) -> float | None:
    """When the run of a folder began, in seconds since the epoch; None where it is neither going on nor queued."""
    status = _json(folder / STATUS)
    if not _touched(folder / LOCK) and status.get("state") != "queued":
        return None
    return _when(status.get("started")) or 0.0


def _touched(lease: Path) -> bool:
    """Whether a lease is there and its holder has shown itself lately."""
    try:
        return time.time() - lease.stat().st_mtime < TAKEN_AFTER_SECONDS
    except OSError:
        return False


def _when(text: Any) -> float | None:
    try:
        return calendar.timegm(time.strptime(text, TIME))
    except (ValueError, TypeError):
        return None
