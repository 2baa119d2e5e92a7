"""What a suite of many tasks says of some of them: groups that are scored as one, fewer documents, examples."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from idp.config import Task
from idp.errors import UserError
from idp.tasks import catalog
from idp.tasks.own import Own

Value = TypeVar("Value")


def value_of(values: Mapping[str, Value] | None, task: str, mine: Own) -> Value | None:
    """What a mapping by tasks and groups says of one task: by its own name, else by the first group that it is in."""
    for name, value in (values or {}).items():
        if name == task:
            return value
    return next((value for name, value in (values or {}).items() if task in expand([name], mine)), None)


def groups(config: Mapping[str, Any], tasks: Collection[str]) -> dict[str, list[str]]:
    """The tasks of each of `task.groups` that are among `tasks`, in their order; groups without any drop out.

    Args:
        config: the resolved `task` of a run's config.
        tasks: what was measured.
    """
    asked, found = config.get("groups") or {}, {}
    mine = catalog.find_own(config.get("include_path")) if asked else catalog.NONE
    for group, names in asked.items():
        members = set(expand(names, mine))
        found[group] = [task for task in tasks if task in members]
    return {group: members for group, members in found.items() if members}


def pairs(config: Mapping[str, Any], tasks: Collection[str]) -> dict[str, str]:
    """`task.open_book`, closed to open, as far as both are among `tasks`."""
    asked = config.get("open_book") or {}
    return {closed: with_passage for closed, with_passage in asked.items() if {closed, with_passage} <= set(tasks)}


def check(cfg: Task, mine: Own) -> None:
    """Refuses names that no task and no group has, and numbers out of range.

    Raises:
        UserError: names the option.
    """
    named = {
        "groups": [name for names in (cfg.groups or {}).values() for name in names],
        "open_book": [name for pair in (cfg.open_book or {}).items() for name in pair],
        "documents_of": list(cfg.documents_of or {}),
        "fewshot_of": list(cfg.fewshot_of or {}),
    }
    for option, names in named.items():
        for name in names:
            try:
                expand([name], mine)
            except UserError as error:
                raise UserError(str(error).replace("task.names", f"task.{option}", 1)) from None
    for option, least in (("documents_of", 1), ("fewshot_of", 0)):
        for name, value in (getattr(cfg, option) or {}).items():
            if value is not None and value < least:
                raise UserError(f"task.{option}.{name}={value}: at least {least}")


def expand(names: Iterable[str], mine: Own) -> list[str]:
    """Single tasks in the order asked for, each once."""
    leaves: list[str] = []
    for name in names:
        leaves += catalog.expand(name, mine)
    return list(dict.fromkeys(leaves))
