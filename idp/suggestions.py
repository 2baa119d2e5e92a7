"""What may have been meant by a word that is no option and no choice: full names, and the choices that have them."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from idp import config, registry
from idp.config import conf_dir

SHORT = {  # what people write, and the last part of the option's name
    "lr": "learning_rate",
    "limit": "documents",
    "bs": "batch_size",
    "epochs": "steps",
    "iters": "steps",
    "iterations": "steps",
    "nsamples": "samples",
    "num_samples": "samples",
    "few_shot": "fewshot",
    "num_fewshot": "fewshot",
    "wbits": "bits",
    "groupsize": "group_size",
    "seq_len": "sequence_length",
    "r": "rank",
}
SHOWN = 3


def for_option(key: str) -> str:
    """What to say behind an option that there is not, or not with what is chosen."""
    known = _known()
    here = sorted(known.get(key, ()))
    if here and "" not in here:
        return f"it is an option of {_some(here)}; choose one of these"
    last = key.rsplit(".", 1)[-1]
    wanted = SHORT.get(last, last)
    names = {each.rsplit(".", 1)[-1] for each in known}
    whole = [path.name for path in conf_dir().iterdir() if path.is_dir()] if "." not in key else []
    if wanted not in names and (groups := difflib.get_close_matches(key, whole, n=1, cutoff=0.75)):
        return f"did you mean {groups[0]}=...?"
    if (group := _group(last)) is not None and wanted not in names:
        return f"did you mean {group}=...?"
    near = [wanted] if wanted in names else difflib.get_close_matches(wanted, sorted(names), n=SHOWN)
    above = key.rpartition(".")[0]
    found = [each for each in known if each.rsplit(".", 1)[-1] in near]
    inside = [each for each in found if above and each.startswith(f"{above}.")] or found
    inside.sort(key=lambda each: (near.index(each.rsplit(".", 1)[-1]), _rank(each), each.count("."), each))
    if not inside:
        return f"did you mean {group}=...?" if group else "see idp run --help for what there is"
    return f"did you mean {' or '.join(_full(each, known[each]) for each in inside[:SHOWN])}?"


def for_group(key: str, groups: Iterable[str]) -> str:
    """What to say behind a group that there is not."""
    if (group := _group(key.replace(".", "/").rsplit("/", 1)[-1])) is not None and group != key:
        return f"did you mean {group}=...?"
    near = difflib.get_close_matches(key, list(groups), n=1)
    return f"did you mean {near[0]}?" if near else for_option(key)


def nearest_choices(name: str, known: Iterable[str]) -> list[str]:
    """The choices that are likest to a name, the best first; capitals, dashes and underscores count for nothing."""
    plain: dict[str, str] = {}
    for each in known:
        plain.setdefault(_plain(each), each)
    return [plain[each] for each in difflib.get_close_matches(_plain(name), list(plain), n=SHOWN, cutoff=0.6)]


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _group(name: str) -> str | None:
    """The group below another one that a name is the last part of."""
    found = sorted(path.relative_to(conf_dir()).as_posix() for path in conf_dir().glob(f"*/{name}") if path.is_dir())
    return found[0] if found and name.isidentifier() else None


def _rank(option: str) -> int:
    """Options of what people change most come first."""
    order = ("recovery", "task", "budget", "compressor")
    first = option.partition(".")[0]
    return order.index(first) if first in order else len(order)


def _full(option: str, choices: Iterable[str]) -> str:
    some = sorted(choices)
    return option if "" in some else f"{option} (with {_some(some)})"


def _some(choices: list[str]) -> str:
    return ", ".join(choices[:8]) + (", ..." if len(choices) > 8 else "")


def _known() -> dict[str, set[str]]:
    """Every option's full name, and the choices that have it; an empty one where it is always there."""
    found: dict[str, set[str]] = {}
    for name in _names("", config.Config):
        found.setdefault(name, set()).add("")
    for prefix, group, kinds in (
        ("recovery.", "recovery", registry.recoveries()),
        ("recovery.bank.", "recovery/bank", registry.banks()),
        ("recovery.selector.", "recovery/selector", registry.selectors()),
        ("compressor.", "compressor", registry.compressors()),
        ("tracker.", "tracker", registry.trackers()),
        ("corpus.", "corpus", registry.sources()),
    ):
        for kind, node in kinds.items():
            many = group == "compressor" and not (conf_dir() / group / f"{kind}.yaml").is_file()  # choices of one kind
            for name in _names(prefix, node):
                found.setdefault(name, set()).add("" if many else f"{group}={kind}")
    return found


def _names(prefix: str, node: type) -> Iterator[str]:
    hints = typing.get_type_hints(node)
    for item in dataclasses.fields(node):
        types: list[Any] = [item.metadata.get("node"), hints[item.name], *typing.get_args(hints[item.name])]
        nested = next((each for each in types if isinstance(each, type) and dataclasses.is_dataclass(each)), None)
        if nested is None:
            yield f"{prefix}{item.name}"
        else:
            yield from _names(f"{prefix}{item.name}.", nested)
