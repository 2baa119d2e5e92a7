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

from idp.errors import UserError

log = logging.getLogger(__name__)

OWN = Path(__file__).parent / "own_tasks"  # what lm-eval does not define, in its form

# A definition's own name stands at the start of a line; a group's list of tasks has nothing after the colon.
NAME = re.compile(rb"""^["']?(task|group)["']?:[ \t]*["']?([^"'\s#\[!]+)""", re.MULTILINE)


def expand(name: str, also_known: tuple[str, ...] = ()) -> list[str]:
    """The names of the single tasks that `name` stands for: itself, or the leaves of a group or tag such as mmlu.

    Raises:
        UserError: lm-eval has no such task; the message gives close matches, also among `also_known`.
    """
    leaves = _leaves(name, folder=None)
    if leaves:
        return leaves
    tasks, groups = scan()
    close = difflib.get_close_matches(name, [*also_known, *tasks, *groups], n=4)
    meant = f"; did you mean {', '.join(close)}?" if close else ""
    raise UserError(f"task.names: lm-eval has no task named {name}{meant}")


def definition(name: str) -> dict[str, Any]:
    """The task's YAML with its includes merged and its functions resolved: what `ConfigurableTask(config=...)` takes.

    A task that is a Python class has the key `class`.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    return load_yaml(scan()[0][name], resolve_func=True)


def definition_text(name: str) -> str:
    """The same as canonical JSON, functions by their place in lm-eval, with lm-eval's version for their code."""
    from importlib.metadata import version

    from lm_eval.tasks._yaml_loader import load_yaml

    resolved = load_yaml(scan()[0][name], resolve_func=False)
    text = json.dumps(resolved, sort_keys=True, ensure_ascii=False, default=str)
    for root in (OWN, _root()):
        text = text.replace(str(root.resolve()), "").replace(str(root), "")
    return f"lm_eval {version('lm_eval')} {text}"


@functools.cache
def scan() -> tuple[dict[str, Path], dict[str, Path]]:
    """The YAML file of every task and of every group, by reading names as text: under a second for 14,000 files."""
    tasks: dict[str, Path] = {}
    groups: dict[str, Path] = {}
    for path in _yaml_files():
        found = dict(reversed(NAME.findall(_read(path))))
        kind = b"group" if b"group" in found else b"task"
        if kind in found:
            (groups if kind == b"group" else tasks).setdefault(found[kind].decode(), Path(path))
    return tasks, groups


def _root() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


def _yaml_files() -> list[str]:
    """Plain strings: 14,000 `Path` objects would take longer than reading the files."""
    own = sorted(str(path) for path in OWN.glob("*.yaml"))
    found = []
    for place, folders, files in os.walk(_root()):
        folders[:] = [name for name in folders if name not in ("__pycache__", ".ipynb_checkpoints")]
        found += [os.path.join(place, name) for name in files if name.endswith(".yaml")]
    return own + sorted(found)  # of two definitions of a name lm-eval takes the first in this order


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _leaves(name: str, folder: Path | None) -> list[str]:
    """`folder`: where the group that names it lies, which is where its tags are defined; None: asked for directly."""
    tasks, groups = scan()
    if name in tasks:
        return [name]
    if name in groups:
        return _members(groups[name])
    if folder is not None and (tagged := _tagged(name, folder)):
        return tagged
    # Tags are found through lm-eval's own index; a name that stands in no file at all is not worth those seconds.
    if not any(name.encode() in _read(path) for path in _yaml_files()):
        return []
    log.info("%s is no task or group: reading lm-eval's whole index for tags (about 15 s)", name)
    return _tagged(name, _root())


def _members(group: Path) -> list[str]:
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
                f"task.names: lm-eval's group in {group.name} changes the settings of {name}: name its tasks one by one"
            )
        leaves += _leaves(name, group.parent)
    return leaves


def _tagged(tag: str, folder: Path) -> list[str]:
    from lm_eval.tasks._index import Kind

    entry = _index(folder).get(tag)
    return sorted(entry.tags) if entry is not None and entry.kind is Kind.TAG else []


@functools.cache
def _index(folder: Path) -> dict[str, Any]:
    from lm_eval.tasks._index import TaskIndex

    return TaskIndex.build([folder])
