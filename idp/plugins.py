"""Modules of the user's own with kinds in them: `plugins=[my_module]`, on the command line or in an experiment's YAML.

They are imported before Hydra composes, since what it composes is typed by them. What is imported here stays for the
process; `idp.registry` looks for kinds in it.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from idp.config import conf_dir
from idp.errors import UserError

KEY = "plugins"

_LOADED: dict[str, ModuleType] = {}


def loaded() -> dict[str, ModuleType]:
    """The plug-ins of this process, by the names that they were asked for by."""
    return dict(_LOADED)


def load(names: Iterable[str]) -> bool:
    """Imports modules that have kinds; whether one of them is new. They may lie in the working folder.

    Raises:
        UserError: there is no such module, or it does not import.
    """
    new = False
    for name in names:
        if name not in _LOADED:
            _LOADED[name] = _imported(name)
            new = True
    return new


def reason(error: BaseException) -> str:
    """An error of an import in a line: its kind, its text, and the place in the file that failed."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "importlib" not in file:
            place = f" ({file}, line {trace.tb_lineno})"
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


def _imported(name: str) -> ModuleType:
    label = f"plugins=[{name}]"
    if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        hint = f"; say plugins=[{Path(name).stem}]" if name.endswith(".py") else ""
        raise UserError(f"{label}: give a module as `import` would name it{hint}")
    if (here := os.getcwd()) not in sys.path and "" not in sys.path:  # a script's path begins where the script lies
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (error.name == name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"{label}: there is no module {error.name}; run where it lies, put its folder on PYTHONPATH, or install"
                " it"
            ) from error
        raise UserError(f"{label}: does not import: {reason(error)}") from error
    except Exception as error:  # whatever a module does as it is imported
        raise UserError(f"{label}: does not import: {reason(error)}") from error


def code(node: type) -> dict[str, str]:
    """What a class that is none of ours is known by in a key: the hash of its code, or the version that it states.

    A class states one as `code_version`, to be raised when what it makes changes; then its code may be edited without
    anything being made anew. Of a package every Python file counts, of a single module that file.
    """
    stated = node.__dict__.get("code_version")
    if stated is not None:
        return {"module": node.__module__, "version": str(stated)}
    root, files = _files(node.__module__)
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.relative_to(root).as_posix()}\0".encode())
        found.update(hashlib.sha256(file.read_bytes()).digest())
    return {"module": node.__module__, "sha256": found.hexdigest()}


def _files(name: str) -> tuple[Path, list[Path]]:
    """The folder and the Python files of the package that a module is in, or the module's own."""
    parts = name.split(".")
    places = (getattr(sys.modules.get(".".join(parts[:count])), "__file__", None) for count in range(1, len(parts) + 1))
    file = Path(next(filter(None, places)))  # a namespace has none, and is no package of one author's
    return file.parent, sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]


def named(argv: Sequence[str]) -> list[str]:
    """The plug-ins that a command line asks for: by `plugins=[...]`, or else in the YAML files that it chooses.

    Only files whose keys are the config's own are looked into: the primary one, and those with `# @package _global_`,
    as experiments have. What cannot be read is left for Hydra to refuse.

    Args:
        argv: flags and overrides of Hydra's.
    """
    overrides = list(_overrides(argv))
    if given := [value for key, values in overrides if key == KEY for value in values]:
        return list(dict.fromkeys(name for value in given for name in _names(value)))
    folders = [*_folders(argv, overrides), conf_dir()]
    found: dict[str, None] = {}
    seen: set[Path] = set()
    _look(_flag(argv, "--config-name", "-cn") or "config", folders, seen, found, primary=True)
    for group, choices in overrides:
        for choice in choices:
            for name in _chosen(choice, group, folders):
                _look(f"{group.partition('@')[0]}/{name}", folders, seen, found)
    return list(found)


def _overrides(argv: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    """Each override's key and its value, or its values in a sweep."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob

    parser = OverridesParser.create()
    for word in argv:
        try:
            override = parser.parse_override(word)
            if override.is_delete() or override.key_or_group is None:
                continue
            value = override.value()
            if override.is_discrete_sweep() and not isinstance(value, Glob):
                value = [str(each) for each in override.sweep_string_iterator()]
                yield override.key_or_group, value
            else:
                yield override.key_or_group, [value]
        except Exception:  # a flag, or what Hydra will refuse in its own line
            continue


def _names(value: Any) -> list[str]:
    if isinstance(value, str) and value.startswith("["):  # one list of a sweep over lists
        value = [part.strip() for part in value.strip("[]").split(",") if part.strip()]
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]


def _flag(argv: Sequence[str], *names: str) -> str | None:
    for place, word in enumerate(argv):
        for name in names:
            if word == name and place + 1 < len(argv):
                return argv[place + 1]
            if word.startswith(f"{name}="):
                return word.partition("=")[2]
    return None


def _folders(argv: Sequence[str], overrides: list[tuple[str, list[Any]]]) -> Iterator[Path]:
    if given := _flag(argv, "--config-dir", "-cd"):
        yield Path(given)
    for key, values in overrides:
        if key == "hydra.searchpath":
            for place in (place for value in values for place in (value if isinstance(value, list) else [value])):
                yield Path(str(place).removeprefix("file://"))


def _chosen(choice: Any, group: str, folders: list[Path]) -> list[str]:
    from hydra.core.override_parser.types import Glob

    if isinstance(choice, Glob):
        place = group.partition("@")[0]
        return choice.filter([file.stem for folder in folders for file in (folder / place).glob("*.yaml")])
    return [str(each) for each in choice] if isinstance(choice, list) else [str(choice)]


def _look(name: str, folders: list[Path], seen: set[Path], found: dict[str, None], primary: bool = False) -> None:
    """Adds the plug-ins of the YAML file called `name`, such as `experiment/mine`, and of those that it is made of."""
    import yaml

    file = next((file for folder in folders if (file := folder / f"{name}.yaml").is_file()), None)
    if file is None or file in seen:
        return
    seen.add(file)
    try:
        text = file.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return
    if not isinstance(content, dict):
        return
    if (primary or "@package _global_" in text.partition("\n")[0]) and isinstance(content.get(KEY), list):
        found.update(dict.fromkeys(map(str, content[KEY])))
    for item in content.get("defaults") or []:
        for other in _made_of(item, name.rpartition("/")[0]):
            _look(other, folders, seen, found)


def _made_of(item: Any, group: str) -> Iterator[str]:
    """The files that one entry of a defaults list names."""
    pairs = item.items() if isinstance(item, dict) else [(None, item)]
    for key, value in pairs:
        for choice in value if isinstance(value, list) else [value]:
            if not isinstance(choice, str) or choice == "_self_":
                continue
            if key is None:
                place = choice.partition("@")[0]
            else:
                parts = str(key).split()
                place = f"{parts[-1].partition('@')[0]}/{choice}"
                if "override" in parts[:-1] and not parts[-1].startswith("/"):
                    place = f"/{place}"
            yield place.removeprefix("/") if place.startswith("/") else "/".join(filter(None, [group, place]))
