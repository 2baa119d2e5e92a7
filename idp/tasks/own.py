"""The user's own lm-eval tasks: every YAML file under the folders of `task.include_path`, found by name.

They are held to more than lm-eval holds its own to: a file that lm-eval would pass over without a word is named here.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from idp.errors import UserError
from idp.hub import first_line

OPTION = "task.include_path"
PASSED_OVER = {"__pycache__", ".ipynb_checkpoints"}
OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")
NEEDED = {
    "multiple_choice": ("doc_to_text", "doc_to_target", "doc_to_choice"),
    "loglikelihood": ("doc_to_text", "doc_to_target"),
    "loglikelihood_rolling": ("doc_to_target",),
    "generate_until": ("doc_to_text", "doc_to_target"),
}
TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice")
WORD = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Own:
    """What the folders define: the YAML file of each task and group, the tasks of each tag, and files without a name
    (what others include)."""

    folders: tuple[Path, ...] = ()
    tasks: dict[str, Path] = field(default_factory=dict)
    groups: dict[str, Path] = field(default_factory=dict)
    tags: dict[str, list[str]] = field(default_factory=dict)
    nameless: list[Path] = field(default_factory=list)


def find_own_tasks(include_path: Any, taken: Iterable[str] = ()) -> Own:
    """The tasks, groups and tags under one folder or several.

    Args:
        include_path: a folder, a list of them, or None.
        taken: names that no own task or group may have.

    Raises:
        UserError: there is no such folder, or a file in it cannot be used.
    """
    folders = tuple(_folders(include_path))
    files = {file: file.stat().st_mtime_ns for folder in folders for file in _yaml_files(folder)}  # each once
    if folders and not files:
        raise UserError(
            f"{OPTION}={include_path}: there is no .yaml file in it; put lm-eval's definition of a task there"
        )
    found = _read(folders, tuple(files.items()))
    for name in {**found.tasks, **found.groups}.keys() & set(taken):
        file = found.tasks.get(name) or found.groups[name]
        raise UserError(f"{file}: lm-eval has a task or group named {name} already; give yours another name")
    return found


def checked(name: str, file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """An own task's definition, its functions resolved, with the files that it names found beside it.

    Raises:
        UserError: lm-eval could not use it.
    """
    from lm_eval.config.task import TaskConfig

    def refuse(what: str) -> UserError:
        return UserError(f"{file}: {what}")

    if "class" in config:
        return config
    if unknown := config.keys() - TaskConfig.__dataclass_fields__.keys():
        raise refuse(f"{min(unknown)} is no option of an lm-eval task; drop it or spell it as lm-eval does")
    kind = config.get("output_type", "generate_until")
    if kind not in OUTPUT_TYPES:
        raise refuse(f"output_type: {kind} is not known; use one of {', '.join(OUTPUT_TYPES)}")
    missing = [option for option in NEEDED[kind] if config.get(option) is None]
    if missing and not config.get("use_prompt"):
        raise refuse(f"{missing[0]} is missing, which output_type: {kind} needs")
    _check_metrics(file, config)
    for option in ("test_split", "validation_split"):
        if config.get(option) is not None and not isinstance(config[option], str):
            raise refuse(f"{option} must be the name of a split, not {config[option]!r}")
    return _beside(config, file.parent)


def check_fields(file: Path, config: dict[str, Any], fields: Iterable[str]) -> None:
    """Refuses a template of one word that is no field of the documents: every document would get that word itself.

    Raises:
        UserError: as said.
    """
    for option in TEMPLATES:
        template = config.get(option)
        if isinstance(template, str) and WORD.fullmatch(template) and template not in fields:
            raise UserError(
                f"{file}: {option}: {template} is no field of the documents, which have {', '.join(fields)}"
            )


def root_of(mine: Own, file: Path) -> Path:
    """The folder of `task.include_path` that a definition lies in."""
    return next(folder for folder in mine.folders if file.is_relative_to(folder))


def code(root: Path) -> str:
    """The hash of all Python under a folder: what the functions of its tasks do."""
    scripts = sorted(script for script in root.rglob("*.py") if not PASSED_OVER & set(script.parts))
    hashes = [f"{script.relative_to(root)} {hashlib.sha256(script.read_bytes()).hexdigest()}" for script in scripts]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _check_metrics(file: Path, config: dict[str, Any]) -> None:
    """A metric that lm-eval does not have is one of the package `evaluate`, which would be asked over the network."""
    import lm_eval.api.metrics  # noqa: F401  it fills the registry
    from lm_eval.api.registry import metric_registry

    for metric in config.get("metric_list") or []:
        if not isinstance(metric, dict) or "metric" not in metric:
            raise UserError(f"{file}: metric_list: each entry must be a mapping with `metric:`, not {metric}")
        name = metric["metric"]
        known = callable(name) or config.get("process_results") or metric.get("hf_evaluate") or name in metric_registry
        if not known:
            close = difflib.get_close_matches(name, list(metric_registry), n=3)
            meant = f"; did you mean {', '.join(close)}?" if close else ""
            raise UserError(
                f"{file}: lm-eval has no metric named {name}{meant} (one of the package evaluate: `hf_evaluate: true`)"
            )


def _folders(include_path: Any) -> Iterable[Path]:
    listed = [] if include_path is None else [include_path] if isinstance(include_path, str) else include_path
    if not isinstance(listed, (list, tuple)) or not all(isinstance(folder, str) and folder for folder in listed):
        raise UserError(f"{OPTION}={include_path}: give a folder, or a list of folders")
    for folder in listed:
        place = Path(folder).expanduser().resolve()
        if place.is_file():
            raise UserError(f"{OPTION}={folder}: is a file; give its folder, {OPTION}={place.parent}")
        if not place.is_dir():
            raise UserError(f"{OPTION}={folder}: there is no such folder")
        yield place


def _yaml_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*.yaml") if file.is_file() and not PASSED_OVER & set(file.parts))


@functools.lru_cache(maxsize=16)
def _read(folders: tuple[Path, ...], files: tuple[tuple[Path, int], ...]) -> Own:
    found = Own(folders)
    for file, _ in files:
        config = load(file, functions=False)
        names = {kind: config.get(kind) for kind in ("task", "group")}
        if names["group"] is None and names["task"] is None:
            found.nameless.append(file)
            continue
        kind = "task" if names["group"] is None else "group"
        name, known = names[kind], found.tasks if kind == "task" else found.groups
        if not isinstance(name, str) or not name or "/" in name:
            raise UserError(f"{file}: {kind}: {name!r} is no name; give the {kind} one word")
        if kind == "group" and not isinstance(names["task"], list):
            raise UserError(
                f"{file}: the group {name} must list its tasks under `task:` (a task's own groups are `tag:`)"
            )
        if other := found.tasks.get(name) or found.groups.get(name):
            raise UserError(f"{file}: {other} has the name {name} already; give one of them another")
        known[name] = file
        tags = config.get("tag") or []
        for tag in [tags] if isinstance(tags, str) else tags if kind == "task" else []:
            found.tags.setdefault(tag, []).append(name)
    return found


def load(file: Path, functions: bool) -> dict[str, Any]:
    """A YAML file with what it includes, its `!function` references resolved or as their places.

    Raises:
        UserError: it is no YAML, no mapping, or includes or refers to what is not there.
    """
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        return load_yaml(file, resolve_func=functions)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{file}{line}: not YAML as lm-eval reads it: {problem}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text") from error
    except FileNotFoundError as error:
        raise UserError(f"{file}: includes {error.filename}, which is not there") from error
    except ValueError as error:
        what = "files include one another" if "cycle" in str(error) else "holds no mapping of options to values"
        raise UserError(f"{file}: {what}") from error
    except Exception as error:  # the user's own Python is run here
        raise UserError(f"{file}: its !function cannot be had: {type(error).__name__}: {first_line(error)}") from error


def _beside(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Data files that lie beside the YAML, where the working directory does not have them."""
    options = dict(config.get("dataset_kwargs") or {})
    found = {}
    for name in ("data_files", "data_dir"):
        if name in options:
            options[name] = _placed(options[name], folder)
            found["dataset_kwargs"] = options
    dataset = config.get("dataset_path")
    if isinstance(dataset, str) and dataset.startswith(("./", "../")):
        found["dataset_path"] = _placed(dataset, folder)
    return config | found


def _placed(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: _placed(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_placed(item, folder) for item in value]
    beside = isinstance(value, str) and not Path(value).exists() and "://" not in value and (folder / value)
    return str(beside) if beside and beside.exists() else value
