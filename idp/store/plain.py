"""Anything that a task's definition may hold, as plain JSON that is the same in every process: no memory address in it.

A function goes by its name and by what is bound to it, so that two different ones do not look alike.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import re
import types
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

ADDRESS = re.compile(r"( at )?\b0x[0-9a-fA-F]{4,}\b")
DEEPEST = 8  # objects within objects: what lies deeper is named by its type alone


class Name(str):
    """The name of a function or an object: a string that is not put in quotes among the arguments of another."""


def plain(value: Any) -> Any:
    """`value` as JSON: numbers of numpy and torch as numbers, functions and objects by name and what they hold."""
    return _plain(value, ())


def config_of(config: Any) -> dict[str, Any]:
    """An lm-eval `TaskConfig` as JSON, as its `to_dict` gives it: functions as their source where there is one.

    `to_dict` itself writes functions without a source (partials, callable objects) with their address in memory.
    """
    found = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if value is None:
            continue
        if item.name == "metric_list":
            metrics = [{key: _source(part) for key, part in metric.items()} for metric in value]
            found[item.name] = plain(metrics)
        else:
            found[item.name] = plain(_source(value))
    return found


def _source(value: Any) -> Any:
    if not callable(value) or isinstance(value, Mapping):
        return value
    try:
        return inspect.getsource(value)
    except (TypeError, OSError):
        return value


def _plain(value: Any, within: tuple[int, ...]) -> Any:
    if value is None or type(value) in (bool, int, float, str, Name):
        return value
    if id(value) in within or len(within) > DEEPEST:
        return _type(value)
    within = (*within, id(value))
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(plain(key)): _plain(item, within) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, within) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(item, within) for item in value), key=_text)
    if hasattr(value, "tolist") and callable(value.tolist) and not isinstance(value, type):  # numpy's and torch's
        return _plain(value.tolist(), within)
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not callable(value):
        fields = dataclasses.fields(value)
        return {item.name: _plain(getattr(value, item.name), within) for item in fields}
    return _named(value, within)


def _named(value: Any, within: tuple[int, ...]) -> Name:
    return Name(_spelled(value, within))


def _spelled(value: Any, within: tuple[int, ...]) -> str:
    if isinstance(value, functools.partial):
        return f"functools.partial({_arguments([value.func, *value.args], value.keywords, within)})"
    if isinstance(value, types.MethodType):
        return f"{_text(_plain(value.__self__, within))}.{value.__name__}"
    if isinstance(value, types.FunctionType):
        inner = inspect.unwrap(value)
        return _function(value, within) if inner is value else _named(inner, within)
    if isinstance(value, types.ModuleType):
        return value.__name__
    if callable(value) and hasattr(value, "__qualname__"):  # classes, and functions written in C
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, PurePath):
        return str(value)
    has_text = type(value).__repr__ is not object.__repr__ and not callable(value)
    if has_text and not ADDRESS.search(shown := str(value)) and not shown.startswith("<"):
        return shown
    return f"{_type(value)}({_arguments([], _state(value), within)})"


def _function(function: types.FunctionType, within: tuple[int, ...]) -> str:
    """Its place and name; with what it closes over, and with a hash of its code where it has no name of its own."""
    name, held = f"{function.__module__}.{function.__qualname__}", {}
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            held[variable] = cell.cell_contents
        except ValueError:  # not bound yet
            continue
    if "<" in name:
        name = f"{name}#{hashlib.sha256(_code(function.__code__).encode()).hexdigest()[:8]}"
        held |= {f"default_{number}": item for number, item in enumerate(function.__defaults__ or ())}
    return f"{name}({_arguments([], held, within)})" if held else name


def _code(code: types.CodeType) -> str:
    constants = [_code(item) if isinstance(item, types.CodeType) else repr(item) for item in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _state(value: Any) -> dict[str, Any]:
    """An object's own attributes, those that begin with two underscores left out."""
    slots = [name for kind in type(value).__mro__ for name in _listed(getattr(kind, "__slots__", ()))]
    found = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    found |= getattr(value, "__dict__", {})
    return {name: item for name, item in sorted(found.items()) if not name.startswith("__")}


def _listed(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _arguments(positional: list[Any], named: Mapping[str, Any], within: tuple[int, ...]) -> str:
    values = [_text(_plain(item, within)) for item in positional]
    return ", ".join([*values, *(f"{name}={_text(_plain(item, within))}" for name, item in named.items())])


def _text(value: Any) -> str:
    if isinstance(value, Name):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _type(value: Any) -> Name:
    return Name(f"{type(value).__module__}.{type(value).__qualname__}")
