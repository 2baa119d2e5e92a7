"""A task's documents from a JSON-lines file: one object per line, and every line of the same fields and types.

Arrow takes its columns from the first line: a field that only later lines have would be dropped without a word, and a
type that changes on the way is an error far from its line. Both are found here, with the line.
"""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from idp.errors import UserError
from idp.text_files import is_unicode

LONGEST = 2**63  # Arrow's integers


def read(file: Path, subject: str | None = None) -> Any:
    """The file as a `datasets.Dataset`, of one subject where one is given.

    Raises:
        UserError: a line is no JSON object, lacks a field that others have, or holds another type in one.
    """
    from datasets import Dataset

    documents = _documents(str(file), file.stat().st_mtime_ns)
    if subject is not None:
        documents = [document for document in documents if document.get("subject") == subject]
    if not documents:
        raise UserError(f"{file}: no documents{f' of subject {subject}' if subject else ''}")
    return Dataset.from_list(documents)


def line(file: Path, number: int, subject: str | None = None) -> int:
    """The line, from 1, of the file's document `number`, from 0, of those of a subject where one is given."""
    opened = gzip.open if file.name.endswith(".gz") else open
    with opened(file, "rt", encoding="utf-8-sig") as lines:
        for at, text in enumerate(lines, start=1):
            if text.strip() and (subject is None or json.loads(text).get("subject") == subject):
                if number == 0:
                    return at
                number -= 1
    raise IndexError(f"{file} has fewer documents")


@functools.lru_cache(maxsize=4)  # the 57 subjects of MMLU share their files
def _documents(file: str, modified: int) -> list[dict[str, Any]]:
    documents: list[dict[str, Any]] = []
    first: dict[str, tuple[str, int]] = {}  # each place in a document: what the file has there, and since which line
    opened = gzip.open if file.endswith(".gz") else open
    try:
        with opened(file, "rt", encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    documents.append(_document(line, documents[0] if documents else None, f"{file} line {number}"))
                    _same_types(documents[-1], first, file, number)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
    return documents


def _document(line: str, first: dict[str, Any] | None, where: str) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(document, dict) or not document:
        found = "an empty one" if document == {} else type(document).__name__
        raise UserError(f"{where}: must be a JSON object with the hub's fields, not {found}")
    if first is not None:
        if missing := first.keys() - document.keys():
            raise UserError(f"{where}: field {min(missing)} is missing (the lines before it have it)")
        if new := document.keys() - first.keys():
            raise UserError(
                f"{where}: field {min(new)} is not in the lines before it; give every line the same fields (null where"
                " there is nothing)"
            )
    return document


def _same_types(document: dict[str, Any], first: dict[str, tuple[str, int]], file: str, number: int) -> None:
    """Holds a document to the types that the lines before it have, in lists and objects within it as well."""
    for place, value in _values(document, ""):
        kind, where = _kind(value), f"{file} line {number}: field {place}"
        if kind == "number" and isinstance(value, int) and not -LONGEST <= value < LONGEST:
            raise UserError(f"{where} is {value}, which takes more than 64 bits; write it as a string")
        if kind == "str" and not is_unicode(value):
            raise UserError(f"{where} holds half of a surrogate pair: not valid Unicode")
        known, line = first.setdefault(place, (kind, number))
        if kind != known:
            raise UserError(
                f"{where} is {kind}, where line {line} has {known}; give a field the same type on every line"
            )


def _values(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Every value in a document with its place, such as `choices.text[]`; nulls fit everywhere and are left out."""
    if place and value is not None:
        yield place, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _values(inner, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        for inner in value:
            yield from _values(inner, f"{place}[]")


def _kind(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "number"
    return {"dict": "object", "bool": "boolean"}.get(type(value).__name__, type(value).__name__)
