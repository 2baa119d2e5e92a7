"""Where a task is defined, by lm-eval or here: found by name without lm-eval's own index, which takes 10-17 seconds."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from idp import registry
from idp.errors import UserError
from idp.tasks import own
from idp.tasks.own import Own

log = logging.getLogger(__name__)

# A definition's own name stands at the start of a line; a group's list of tasks has nothing after the colon.
NAME = re.compile(rb"""^["']?(task|group)["']?:[ \t]*["']?([^"'\s#\[!]+)""", re.MULTILINE)


NONE = Own()


def aliases() -> dict[str, tuple[str, ...]]:
    """The names by which suites call several tasks at once."""
    return {name: tuple(tasks) for suite in registry.suites().values() for name, tasks in suite.aliases.items()}


def find_own(include_path: Any) -> Own:
    """The user's own tasks under the folders of `task.include_path`.

    Raises:
        UserError: a folder or file that cannot be used, or a name that lm-eval or a suite has.
    """
    return own.find_own_tasks(include_path, [*aliases(), *scan()[0], *scan()[1]] if include_path else ())


def expand(name: str, mine: Own = NONE) -> list[str]:
    """The names of the single tasks that `name` stands for: itself, those of a suite's alias, or the leaves of a group
    or tag such as mmlu.

    Raises:
        UserError: there is no such task; the message gives close matches.
    """
    if name in (known := aliases()):
        return list(known[name])
    if name.endswith((".yaml", ".yml")) or "/" in name:
        raise UserError(_of_file(name))
    leaves = _leaves(name, None, mine)
    if leaves:
        return leaves
    tasks, groups = scan()
    close = difflib.get_close_matches(name, [*known, *tasks, *groups, *mine.tasks, *mine.groups, *mine.tags], n=4)
    meant = f"; did you mean {', '.join(close)}?" if close else ""
    where = "lm-eval has no task"
    if mine.folders:
        where = f"neither lm-eval nor {own.OPTION} ({', '.join(map(str, mine.folders))}) has a task"
        if mine.nameless:
            meant += f" ({', '.join(file.name for file in mine.nameless)}: no `task:` or `group:` there names it)"
    raise UserError(f"task.names: {where} named {name}{meant}")


def definition(name: str, mine: Own = NONE) -> dict[str, Any]:
    """The task's YAML with its includes merged and its functions resolved: what `ConfigurableTask(config=...)` takes.

    A task that is a Python class has the key `class`.

    Raises:
        UserError: an own task's definition is not one that lm-eval can use.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    if (file := mine.tasks.get(name)) is not None:
        return own.checked(name, file, own.load(file, functions=True))
    try:
        return load_yaml(scan()[0][name], resolve_func=True)
    except (Exception, SystemExit) as error:  # the task's own Python is run: a package is missing, or a program
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"task.names: {name}: lm-eval's definition cannot be used here ({reason})") from error


def definition_text(name: str, mine: Own = NONE) -> str:
    """The same as canonical JSON, functions by their place, with lm-eval's version for their code, or a hash of the
    user's own."""
    from importlib.metadata import version

    from lm_eval.tasks._yaml_loader import load_yaml

    file, root = scan()[0].get(name), _root().resolve()
    if name in mine.tasks:
        file = mine.tasks[name]
        root = own.root_of(mine, file)
    elif file is not None:
        root = next((folder for folder in _definitions() if file.is_relative_to(folder)), root)
    text = json.dumps(load_yaml(file, resolve_func=False), sort_keys=True, ensure_ascii=False, default=str)
    not_of_a_version = root != _root().resolve()
    code = f" {own.code(root)}" if not_of_a_version and str(root) in text else ""  # it names functions by their place
    return f"lm_eval {version('lm_eval')}{code} {text}".replace(str(root), "")


def scan() -> tuple[dict[str, Path], dict[str, Path]]:
    """The YAML file of every task and of every group, by reading names as text: under a second for 14,000 files."""
    return _scan(_definitions())


@functools.cache
def _scan(definitions: tuple[Path, ...]) -> tuple[dict[str, Path], dict[str, Path]]:
    tasks: dict[str, Path] = {}
    groups: dict[str, Path] = {}
    for path in _yaml_files(definitions):
        found = dict(reversed(NAME.findall(_read(path))))
        kind = b"group" if b"group" in found else b"task"
        if kind in found:
            (groups if kind == b"group" else tasks).setdefault(found[kind].decode(), Path(path))
    return tasks, groups


def _definitions() -> tuple[Path, ...]:
    """The folders of definitions that suites bring."""
    return tuple(suite.definitions for suite in registry.suites().values() if suite.definitions is not None)


def _root() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("lm-eval is not installed: pip install lm-eval")
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


def _yaml_files(definitions: tuple[Path, ...], ending: str = ".yaml") -> list[str]:
    """Plain strings: 14,000 `Path` objects would take longer than reading the files."""
    ours = [path for folder in definitions for path in sorted(str(path) for path in folder.glob(f"*{ending}"))]
    found = []
    for place, folders, files in os.walk(_root()):
        folders[:] = [name for name in folders if name not in ("__pycache__", ".ipynb_checkpoints")]
        found += [os.path.join(place, name) for name in files if name.endswith(ending)]
    return ours + sorted(found)  # of two definitions of a name lm-eval takes the first in this order


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _of_file(name: str) -> str:
    """What to do instead of naming a YAML file as a task."""
    place = Path(name).expanduser()
    if not place.is_file():
        return f"task.names: {name} is no task, nor is there such a file; for your own give {own.OPTION}=<folder>"
    config = own.load(place, functions=False)
    task = config.get("group") or config.get("task") or "<the name after `task:` in it>"
    return f"task.names: {name} is a file; use {own.OPTION}={place.resolve().parent} task.names=[{task}]"


def _leaves(name: str, folder: Path | None, mine: Own) -> list[str]:
    """`folder`: where the group that names it lies, which is where its tags are defined; None: asked for directly."""
    tasks, groups = scan()
    if name in tasks or name in mine.tasks:
        return [name]
    if name in groups or name in mine.groups:
        return _members(groups.get(name) or mine.groups[name], mine)
    tagged = list(mine.tags.get(name, []))
    if folder is not None and (found := _tagged(name, folder)):
        return tagged + found
    # Tags are found through lm-eval's own index; a name that is nowhere a tag is not worth those seconds.
    if not any(_is_tag(name, _read(path)) for path in _yaml_files(_definitions(), "yaml")):
        return tagged
    log.info("%s is no task or group: reading lm-eval's whole index for tags (about 15 s)", name)
    return tagged + _tagged(name, _root())


def _is_tag(name: str, text: bytes) -> bool:
    """Whether a YAML file may have a tag of that name: a list's item or what stands behind `tag:`."""
    if name.encode() not in text or b"tag" not in text:
        return False
    item = rb"""^[ \t]*(-|["']?tag["']?:.*?)[ \t,\["']*""" + re.escape(name.encode()) + rb"""["']?[ \t]*(,|\]|#|\r?$)"""
    return re.search(item, text, re.MULTILINE) is not None


def _members(group: Path, mine: Own) -> list[str]:
    from lm_eval.tasks._yaml_loader import load_yaml

    pending = list(load_yaml(group, resolve_func=False)["task"])
    leaves: list[str] = []
    while pending:
        member = pending.pop(0)
        if isinstance(member, dict) and isinstance(member.get("task"), list):  # a group within the group
            pending[:0] = member["task"]
            continue
        name = member if isinstance(member, str) else member.get("task") or member.get("group")
        if isinstance(member, dict) and len(member) > 1:
            raise UserError(
                f"task.names: the group in {group.name} changes the settings of {name}: name its tasks one by one"
            )
        found = _leaves(name, group.parent, mine)
        if not found and group in mine.groups.values():
            raise UserError(f"{group}: there is no task named {name}")
        leaves += found
    return leaves


def _tagged(tag: str, folder: Path) -> list[str]:
    from lm_eval.tasks._index import Kind

    entry = _index(folder).get(tag)
    return sorted(entry.tags) if entry is not None and entry.kind is Kind.TAG else []


@functools.cache
def _index(folder: Path) -> dict[str, Any]:
    from lm_eval.tasks._index import TaskIndex

    return TaskIndex.build([folder])
