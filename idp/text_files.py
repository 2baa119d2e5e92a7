"""Text from a txt, jsonl or parquet file (or the .gz of one), as documents."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path

from idp.errors import UserError

KINDS = (".txt", ".jsonl", ".parquet")
TITLE = re.compile(r"^ = [^=].* = $")  # a WikiText article begins with ` = Title = `, a section with ` = = `


def is_text_file(path: Path) -> bool:
    return kind(path) in KINDS and path.is_file()


def kind(path: Path) -> str:
    """`.txt` for `a.txt` and for `a.txt.gz`."""
    return Path(path.name.removesuffix(".gz")).suffix


def read_documents(path: Path, text_field: str) -> list[str]:
    """Every document of a file: the rows of a jsonl or parquet file, the paragraphs of a txt file (between blank
    lines), the articles where that is WikiText.

    Raises:
        UserError: no such file, another kind of file, or a row without `text_field`.
    """
    if not is_text_file(path):
        raise UserError(f"{path}: no such file of kind {', '.join(KINDS)} (or .gz of one)")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if kind(path) == ".parquet":
            return _parquet(content, path, text_field)
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if kind(path) == ".jsonl":
        return _jsonl(text, path, text_field)
    rows = wikitext_rows(text)
    return wikitext_articles(rows) if rows else [part for part in re.split(r"\n\s*\n", text) if part.strip()]


def wikitext_rows(text: str) -> list[str]:
    """The rows of the hub's WikiText from a file of its lines; empty where the text is no WikiText.

    The hub has an empty row around every heading. A file that dropped its blank lines gets these back: 4,215 rows of
    the hub's 4,358 for WikiText-2's test split, the others being repeated empty rows.
    """
    lines = text.rstrip("\n").split("\n")
    if not any(TITLE.match(line) for line in lines):
        return []
    if any(not line.strip() for line in lines):
        return [f"{line}\n" if line.strip() else "" for line in lines]
    rows = [""]
    for line in lines:
        heading = line.startswith(" = ") and line.endswith(" = ")
        if heading and rows[-1]:
            rows.append("")
        rows.append(f"{line}\n")
        if heading:
            rows.append("")
    return rows


def wikitext_articles(rows: Iterable[str]) -> list[str]:
    """Rows joined by blank lines, one string per article; together, joined alike, they are the whole text."""
    articles: list[list[str]] = []
    for row in rows:
        if not articles or (TITLE.match(row.rstrip("\n")) and any(articles[-1])):  # the empty row before the first
            articles.append([])
        articles[-1].append(row)
    return ["\n\n".join(article) for article in articles]


def _jsonl(text: str, path: Path, text_field: str) -> list[str]:
    documents = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)[text_field]
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            reason = f"not JSON ({error.msg})" if isinstance(error, json.JSONDecodeError) else f"has no {text_field}"
            raise UserError(f"{path} line {number}: {reason}; corpus.text_field names the key of the text") from error
        if not isinstance(document, str):
            raise UserError(f"{path} line {number}: {text_field} is {type(document).__name__}, not text")
        if not is_unicode(document):
            raise UserError(
                f"{path} line {number}: {text_field} holds half of a surrogate pair, which is not valid Unicode"
            )
        documents.append(document)
    return documents


def is_unicode(text: str) -> bool:
    """Whether a text can be written down: JSON lets half of a surrogate pair stand alone, no encoding does."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parquet(content: bytes, path: Path, text_field: str) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(content))
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a parquet file ({error})") from error
    if text_field not in file.schema_arrow.names:
        columns = ", ".join(file.schema_arrow.names)
        raise UserError(f"{path}: no column {text_field} (it has {columns}): set corpus.text_field")
    kind = file.schema_arrow.field(text_field).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise UserError(f"{path}: column {text_field} is {kind}, not text: set corpus.text_field")
    return [text for text in file.read([text_field]).column(0).to_pylist() if text]
