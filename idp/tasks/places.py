"""Where a task's document came from, for messages: lm-eval's number of it, traced back to a line of a file."""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idp.errors import UserError
from idp.store.plain import ADDRESS
from idp.tasks import rows
from idp.tasks.data import TaskDocuments

READERS = {"doc_to_text", "doc_to_target", "doc_to_choice"}  # lm-eval's functions that read a document


@dataclass(frozen=True)
class Places:
    """The splits that a task reads, and where they are.

    Args:
        task: lm-eval's.
        found: where its documents were found.
        splits: by name, as they were found.
        evaluated: the name of the evaluated split.
        examples: the name of the split that examples come from; None: of none.
    """

    task: Any
    found: TaskDocuments
    splits: dict[str, Any]
    evaluated: str
    examples: str | None

    def document(self, index: int) -> str:
        """Where the evaluated document of that number is."""
        row = _row(self.splits[self.evaluated], self.task.eval_docs, index)
        return self.found.where(self.evaluated) if row is None else self.found.line(self.evaluated, row)

    def example(self, index: int | None) -> str:
        """Where an example of that number is; None: where they all are."""
        if self.examples is None:
            return "the task's own examples" if index is None else f"the task's own example {index}"
        row = _row(self.splits[self.examples], self.task.fewshot_docs(), index) if index is not None else None
        return self.found.where(self.examples) if row is None else self.found.line(self.examples, row)


def set_up(build: Callable[[], Any], name: str, config: dict[str, Any], places: Places, definition: Path | None) -> Any:
    """`build()`, lm-eval's task, which reads its first document as it is made; `definition` is the user's own file.

    Raises:
        UserError: it cannot be made, with the place of the document that it stumbles over where it is one.
    """
    try:
        return build()
    except Exception as error:
        with rows.quiet(logging.CRITICAL):
            for split, documents in places.splits.items():
                _check_processing(_processing(config, split, places), split, documents, name, places)
        read = READERS & {frame.name for frame in traceback.extract_tb(error.__traceback__)}
        where = places.found.line(places.evaluated, 0) if read else str(definition or "task.names")
        what = f"lm-eval's task {name} cannot read it" if read else f"lm-eval cannot set up task {name}"
        if read and definition is not None:
            where = f"{definition}: {where}"
        raise UserError(f"{where}: {what} ({one_line(error)})") from error


def one_line(error: BaseException) -> str:
    """An error's kind and message in one line."""
    return ADDRESS.sub("", " ".join(f"{type(error).__name__}: {error}".split()))[:300]


def _processing(config: dict[str, Any], split: str, places: Places) -> Callable[[Any], Any] | None:
    fewshot = (config.get("fewshot_config") or {}).get("process_docs") if split != places.evaluated else None
    process = fewshot or config.get("process_docs")
    return inspect.unwrap(process) if process is not None else None


def _check_processing(process: Callable | None, split: str, documents: Any, name: str, places: Places) -> None:
    if process is None:
        return
    try:
        left = process(documents)
    except Exception as error:
        line = places.found.line(split, _first_bad(process, documents))
        raise UserError(f"{line}: lm-eval's task {name} cannot read it ({one_line(error)})") from error
    if not len(left):
        raise UserError(f"{places.found.where(split)}: the process_docs of task {name} leaves no document of it")


def _first_bad(process: Callable, documents: Any) -> int:
    """The first row that the function fails on, by halves."""
    low, high = 0, len(documents)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            process(documents.select(range(low, middle)))
            low = middle
        except Exception:
            high = middle
    return low


def _row(raw: Any, processed: Any, index: int) -> int | None:
    """The row of `raw` that a task's document was made of; None where that is not to be told."""
    chosen = getattr(processed, "_indices", None)
    if processed is not raw and chosen is not None and len(chosen) == len(processed):  # what `filter` leaves behind
        return int(chosen.column(0)[index].as_py())
    return index if len(raw) == len(processed) else None
