"""What lm-eval's own command line leaves: `results_<date>.json` and, with `--log_samples`, each task's documents."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from idp.errors import UserError
from idp.records.one_run import LM_EVAL, Documents, NoOutcomes, OneRun, TaskRun, fingerprint, number

DATE = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?"
DATED = re.compile(rf"_({DATE})\.json$")
WITHOUT_SAMPLES = "run lm-eval with --log_samples, which keeps what the model answered to each document"
ABOUT_A_SAMPLE = {  # beside its metrics
    *("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"),
    *("doc_hash", "prompt_hash", "target_hash", "schema_version"),
}
CONDITIONS = {  # of all tasks alike
    "chat_template_sha": "chat template",
    "system_instruction_sha": "system instruction",
    "fewshot_as_multiturn": "examples as turns",
}


def results_files(folder: Path) -> list[Path]:
    """The result files of one folder, or of the folders of models in it, as lm-eval writes them."""
    for pattern in ("*.json", "*/*.json", "*/*/*.json"):
        files = [file for file in folder.glob(pattern) if not file.name.startswith("samples_")]
        found = [file for file in files if file.name == "results.json" or DATED.search(file.name)]
        if found:
            return sorted(found)
    return []


def newest(files: list[Path], label: str) -> tuple[Path, list[str]]:
    """The newest of one model's result files, by the date in its name, and what is said of the others.

    Raises:
        UserError: they are of several models.
    """
    folders = list(dict.fromkeys(file.parent for file in files))
    if len(folders) > 1:
        raise UserError(f"{label}: several models' results; name one of {', '.join(map(str, folders))}")
    found = max(files, key=lambda file: (date_of(file) or "", file.name))
    if len(files) == 1:
        return found, []
    return found, [f"{label}: the newest of {len(files)} results is read, {found.name}; to read another, name its file"]


def date_of(file: Path) -> str | None:
    """The date in a result file's name, which those of its documents have too."""
    found = DATED.search(file.name)
    return found[1] if found else None


def is_result(values: Any) -> bool:
    """Whether a file's JSON is what lm-eval writes."""
    return isinstance(values, dict) and isinstance(values.get("results"), dict) and "versions" in values


def of_results(file: Path, label: str, notes: list[str] | None = None) -> OneRun:
    """A run of lm-eval.

    Args:
        file: of its results; those of its documents are beside it.
        label: how the user named it, for messages.
        notes: what was said of the choice of the file.

    Raises:
        UserError: it is no such file, or there are no documents beside it.
    """
    values = load(file, label)
    if not is_result(values):
        raise UserError(f"{label}: neither a record of idp nor results of lm-eval")
    tasks = {name: _task(values, name) for name in _leaves(values)}
    samples = values.get("samples") or {}  # in a file that a program dumped
    if not samples and not any(_samples(file, task) for task in tasks):
        raise UserError(f"{label}: no samples_<task>_<date>.jsonl beside {file.name}; {WITHOUT_SAMPLES}")
    subtasks = values.get("group_subtasks") or {}
    return OneRun(
        name=_name(values, file),
        place=str(file),
        by=LM_EVAL,
        tasks=tasks,
        groups={
            name: members for name in subtasks if (members := _members(name, subtasks)) and set(members) <= set(tasks)
        },
        group_results=values.get("groups") or {},
        read=lambda task: _documents(file, task, samples.get(task), label),
        conditions={name: values.get(key) for key, name in CONDITIONS.items()},
        notes=notes or [],
    )


def load(file: Path, label: str) -> Any:
    """The JSON in a file.

    Raises:
        UserError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{label}: {file.name} cannot be read as JSON ({error})") from error


def _name(values: Mapping[str, Any], file: Path) -> str:
    name = values.get("model_name") or file.parent.name
    return str(name).rstrip("/").split("/")[-1] or file.stem


def _leaves(values: Mapping[str, Any]) -> list[str]:
    """The tasks themselves: groups have figures beside them, but no documents of their own."""
    known = values.get("configs") or {}
    groups = {name for name, members in (values.get("group_subtasks") or {}).items() if members}
    return [name for name in values["results"] if (name in known if known else name not in groups)]


def _members(group: str, subtasks: Mapping[str, list[str]], above: tuple[str, ...] = ()) -> list[str]:
    """The tasks of a group, those of groups within it too."""
    found: dict[str, None] = {}
    for name in subtasks.get(group) or []:
        if name in above:
            continue
        found |= dict.fromkeys(_members(name, subtasks, (*above, name)) if subtasks.get(name) else [name])
    return list(found)


def _task(values: Mapping[str, Any], name: str) -> TaskRun:
    config = (values.get("configs") or {}).get(name) or {}
    return TaskRun(
        name=name,
        version=values["versions"].get(name),
        shots=(values.get("n-shot") or {}).get(name, config.get("num_fewshot")),
        results=values["results"][name],
        higher_is_better=(values.get("higher_is_better") or {}).get(name) or {},
        generation=config.get("generation_kwargs"),
    )


def _samples(file: Path, task: str) -> Path | None:
    """The file of a task's documents: that of the same date; of results without one, the only one that there is."""
    date, folder = date_of(file), file.parent
    if date is not None:
        found = folder / f"samples_{task}_{date}.jsonl"
        return found if found.is_file() else None
    named = re.compile(rf"(samples_|.*_){re.escape(task)}(_{DATE})?\.jsonl")
    found_all = [each for each in folder.glob("*.jsonl") if named.fullmatch(each.name)]
    exact = [each for each in found_all if re.fullmatch(rf"samples_{re.escape(task)}(_{DATE})?\.jsonl", each.name)]
    found_all = exact or found_all
    return found_all[0] if len(found_all) == 1 else None


def _documents(file: Path, task: str, given: list[Any] | None, label: str) -> Documents:
    samples = _samples(file, task)
    if given is None and samples is None:
        raise NoOutcomes(f"{label}: no documents of it beside {file.name}; {WITHOUT_SAMPLES}")
    hashes: dict[int, str] = {}
    asked: dict[int, str] = {}
    metrics: dict[str, dict[int, float]] = defaultdict(dict)
    for place, sample in enumerate(given) if given is not None else _lines(samples or file, label):
        if not isinstance(sample, dict) or not isinstance(sample.get("doc_id"), int):
            raise UserError(f"{label}: {(samples or file).name} line {place + 1}: no document of lm-eval")
        document, texts = sample["doc_id"], _texts(sample.get("arguments"))
        if sample.get("doc_hash"):
            hashes[document] = sample["doc_hash"]
        if texts:
            asked[document] = fingerprint(texts)
        for metric in sample.get("metrics") or sorted(sample.keys() - ABOUT_A_SAMPLE):
            value, key = number(sample.get(metric)), f"{metric},{sample.get('filter', 'none')}"
            if value is None:
                continue
            if metrics[key].get(document, value) != value:
                raise UserError(
                    f"{label}: {(samples or file).name} line {place + 1}: document {document} is there twice, with two"
                    f" values of {metric}: two runs were written into one file"
                )
            metrics[key][document] = value
    return Documents(hashes, asked, metrics)


def _lines(file: Path, label: str) -> Iterator[tuple[int, Any]]:
    try:
        with file.open(encoding="utf-8") as lines:
            for place, line in enumerate(lines):
                if line.strip():
                    yield place, json.loads(line)
    except (OSError, ValueError) as error:
        where = f" line {place + 1}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{label}: {file.name}{where}: half written, or no file of lm-eval ({error})") from error


def _texts(arguments: Any) -> list[str]:
    """All that the model was given of a document, a text for each choice, from lm-eval's two spellings of it."""
    if isinstance(arguments, dict):  # {"gen_args_0": {"arg_0": context, "arg_1": continuation}, ...}
        ordered = sorted(arguments, key=lambda name: (len(name), name))  # gen_args_2 before gen_args_10
        requests = [[arguments[name][key] for key in sorted(arguments[name])] for name in ordered]
    else:
        requests = list(arguments or [])
    return ["".join(part for part in request if isinstance(part, str)) for request in requests]
