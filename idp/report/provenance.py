"""Which records a report was made of: where each was read, its hash, and the code and machine behind it."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from pathlib import Path

from idp.records.collect import Collection
from idp.records.schema import Record

PACKAGES = ("torch", "transformers", "llmcompressor", "compressed-tensors", "lm-eval", "peft", "datasets")
COLUMNS = (
    *("run", "file", "sha256", "model", "compressor", "recovery", "seed", "budget"),
    *("idp", "git_commit", "python", *PACKAGES, "platform", "device", "instructions", "threads", "command"),
)


def records_csv(found: Collection, folder: Path) -> str:
    """A line for each record: enough to say which results a figure stands on, and to make them again.

    Args:
        found: the records.
        folder: of the report, which the files are named from.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for file, record in zip(found.files, found.records, strict=True):
        writer.writerow({"file": _from(file, folder), "sha256": _sha256(file), **_of(record)})
    return text.getvalue()


def _of(record: Record) -> dict[str, object]:
    about, environment = record["idp"], record["idp"].get("environment") or {}
    config = about["config"]
    versions = environment.get("versions") or {}
    return {
        "run": about["name"],
        "model": record["config"]["model"],
        "compressor": about["compressor"],
        "recovery": config["recovery"]["kind"],
        "seed": config["seed"],
        "budget": about["budget"],
        **{name: versions.get(name) for name in PACKAGES},
        **{name: environment.get(name) for name in COLUMNS if name in environment and name not in PACKAGES},
    }


def _from(file: Path, folder: Path) -> str:
    """From the report's folder, where both lie in one, so that they may be moved together."""
    file, folder = file.resolve(), folder.resolve()
    return Path(os.path.relpath(file, folder)).as_posix() if file.is_relative_to(folder.parent) else str(file)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
