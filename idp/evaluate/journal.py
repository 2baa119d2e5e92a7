"""Finished batches on disk, so that a killed task goes on with the batches that are left."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from idp.store import digest

log = logging.getLogger(__name__)


class Journal:
    """One file of results per plan of batches; a plan is known by the hash of what goes into it.

    Args:
        folder: where the files go; None keeps nothing.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder

    def open(self, plan: Any) -> Page:
        """The page of a plan: any JSON value that determines its batches."""
        if self.folder is None:
            return Page(None)
        self.folder.mkdir(parents=True, exist_ok=True)
        return Page(self.folder / f"batches-{digest(plan)[:24]}.jsonl")


class Page:
    """The finished batches of one plan, a line each, which begins with the hash of the rest.

    What follows a line that is damaged, or that a kill cut off, does not count.
    """

    def __init__(self, path: Path | None):
        self.path, self.finished = path, {}
        if path is None or not path.exists():
            return
        whole = 0
        with open(path, "rb") as file:
            for line in file:
                check, _, text = line.partition(b" ")
                if not line.endswith(b"\n") or check != _hash(text):
                    break
                number, result = json.loads(text)
                self.finished[number] = result
                whole += len(line)
        with open(path, "r+b") as file:
            file.truncate(whole)
        if self.finished:
            log.info("%d finished batches found; going on with the others", len(self.finished))

    def add(self, number: int, result: dict[str, Any]) -> None:
        """Writes one batch's result down."""
        if self.path is not None:
            text = json.dumps([number, result]).encode() + b"\n"
            with open(self.path, "ab") as file:
                file.write(_hash(text) + b" " + text)


def _hash(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode()
