"""The kinds of everything that has kinds: found in the package, in installed distributions, and in plug-ins.

A file of a sort's package that has a class derived from the sort's base is a kind, called as the file is (or by the
default of its field `kind`); the class has its options and says how it is made. With a YAML of its name in the sort's
config group it can be chosen: nothing else knows of it. The same classes are found elsewhere:

- an installed distribution names them as entry points of the sort's group, such as `idp.recoveries`;
- `plugins=[my_module]` names modules (`idp.plugins`).

Two kinds of one name are refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import pkgutil
import sys
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Optional, TypeVar

from omegaconf import MISSING

from idp import config, plugins
from idp.errors import UserError

Node = TypeVar("Node")


@dataclass(frozen=True)
class Sort:
    """One sort of thing that has kinds."""

    name: str  # what it is called in messages, and of its schemas' group in Hydra
    base: type  # from which its kinds derive
    package: str  # in whose files they are
    group: str  # of entry points
    composed: bool = True  # whether a kind's class is the schema of a YAML
    unsaid: str | None = None  # the kind that options without one are of


SORTS: dict[type, Sort] = {}
_REGISTERED: dict[str, dict[str, type]] = {}  # what Hydra knows, by sort


def register_kind_package(
    base: type, package: str, group: str, *, name: str | None = None, composed: bool = True, unsaid: str | None = None
) -> None:
    """Makes a sort of kinds known.

    Args:
        base: the class that its kinds derive from.
        package: the package of which each file may have a kind; it is imported when kinds are asked for.
        group: of the entry points by which installed distributions offer kinds.
        name: what it is called; None: by its base.
        composed: whether kinds are dataclasses that type a YAML, as `schema/<name>/<kind>`.
        unsaid: the kind that recorded options without a `kind` are of.
    """
    SORTS[base] = Sort(name or base.__name__.lower(), base, package, group, composed, unsaid)


register_kind_package(config.Compressor, "idp.compress.compressors", "idp.compressors", unsaid="pruning_quantization")
register_kind_package(config.Pruner, "idp.compress.pruners", "idp.pruners", composed=False)
register_kind_package(config.Quantizer, "idp.compress.quantizers", "idp.quantizers", composed=False)
register_kind_package(config.Recovery, "idp.recover", "idp.recoveries")
register_kind_package(config.Bank, "idp.recover.banks", "idp.banks")
register_kind_package(config.Selector, "idp.prompting.selectors", "idp.selectors")
register_kind_package(config.Corpus, "idp.corpora.sources", "idp.corpora")
register_kind_package(config.Suite, "idp.tasks.known", "idp.suites", composed=False)
register_kind_package(config.Tracker, "idp.track", "idp.trackers")


@functools.cache
def kinds_of(base: type[Node]) -> dict[str, type[Node]]:
    """Every kind of one sort, by name: ours, those of installed distributions, and those of plug-ins.

    Raises:
        UserError: two kinds have one name, or one of another's does not import or is none.
    """
    sort = SORTS[base]
    found: dict[str, type[Node]] = {}
    for name, node in _all(sort):
        if (other := found.setdefault(name, node)) is not node:
            raise UserError(
                f"{sort.name}={name}: two kinds are called so, in {_file(other)} and in {_file(node)}; rename one, or"
                " leave its plug-in out"
            )
    return found


def recoveries() -> dict[str, type[config.Recovery]]:
    """Every recovery's options, by its kind."""
    return kinds_of(config.Recovery)


def banks() -> dict[str, type[config.Bank]]:
    """Every bank's options, by its kind."""
    return kinds_of(config.Bank)


def selectors() -> dict[str, type[config.Selector]]:
    """Every selector's options, by its kind."""
    return kinds_of(config.Selector)


def trackers() -> dict[str, type[config.Tracker]]:
    """Every tracker's options, by its kind."""
    return kinds_of(config.Tracker)


def compressors() -> dict[str, type[config.Compressor]]:
    """Every compressor's options, by its kind."""
    return kinds_of(config.Compressor)


def sources() -> dict[str, type[config.Corpus]]:
    """Every source of a corpus, by its name."""
    return kinds_of(config.Corpus)


def suites() -> dict[str, type[config.Suite]]:
    """Every task suite, by its name."""
    return kinds_of(config.Suite)


def corpus(options: config.Corpus) -> config.Corpus:
    """A corpus's options as those of its source; a YAML that names no schema has options without one.

    Raises:
        UserError: there is no such source, or the options are another's, or lack some of its own.
    """
    node = sources().get(options.source)
    if node is None:
        raise UserError(f"corpus.source={options.source}: choose one of {', '.join(sources())}")
    if isinstance(options, node):
        return options
    if type(options) is not config.Corpus:
        raise UserError(f"corpus.source={options.source}: its options are those of {kind_of(options)}; drop it")
    found = node(**vars(options))
    if lacking := [item.name for item in dataclasses.fields(node) if getattr(found, item.name) == MISSING]:
        raise UserError(
            f"corpus.{lacking[0]} is not set: give it in the YAML, below `defaults: [/schema/corpus/{options.source}"
            "@_here_, _self_]`"
        )
    return found


def register(argv: Sequence[str] = ()) -> None:
    """Makes the schema known to Hydra: `schema` for the whole, and its parts that are chosen by a YAML of their own.

    Args:
        argv: of the command line that Hydra will compose; the plug-ins that it names are loaded first.

    Raises:
        UserError: a plug-in or an installed kind does not import, is none, or has the name of another.
    """
    load_plugins(plugins.named(argv))
    known = {sort.name: kinds_of(sort.base) for sort in SORTS.values() if sort.composed}
    if known == _REGISTERED:  # which takes a third of composing
        return
    _REGISTERED.clear()
    _REGISTERED.update(known)
    from hydra.core.config_store import ConfigStore  # with it comes all of Hydra, and help has no need of that

    store = ConfigStore.instance()
    store.store(name="schema", node=config.Config)
    store.store(group="schema", name="training", node=config.Training)
    store.store(group="schema", name="search", node=config.Search)
    store.store(group="schema", name="fit", node=config.Fitting)
    store.store(group="schema", name="storage", node=config.Storage)
    store.store(group="schema", name="calibration", node=config.Calibration)
    for name, launcher in _launchers().items():
        store.store(group="schema", name=f"{name}_launcher", node=launcher)
    for name, nodes in known.items():
        for kind, node in nodes.items():
            store.store(group=f"schema/{name}", name=kind, node=node)


def load_plugins(names: Iterable[str]) -> None:
    """Imports modules that have kinds of their own; from then on they are found.

    Raises:
        UserError: one is not there, does not import, or has no kind.
    """
    names = list(names)
    if plugins.load(names):
        forget()
    for name in names:
        module = plugins.loaded()[name]
        if not any(_kinds_in(module, sort) for sort in SORTS.values()):
            bases = ", ".join(f"config.{sort.base.__name__}" for sort in SORTS.values())
            raise UserError(
                f"plugins=[{name}]: {module.__file__} has no kind, a class of its own that derives from one of {bases}"
            )


def forget() -> None:
    """Has kinds looked for anew when they are asked for next."""
    kinds_of.cache_clear()


def restore(node: type[Node], values: dict[str, Any], name: str = "") -> Node:
    """A part of the config as a record holds it: plain JSON values, as the dataclasses that they were.

    Args:
        node: the part's dataclass; of what has kinds the base: the values' kind says which.
        values: the record's values.
        name: what the part is called in messages.

    Raises:
        UserError: the values have an option that this version does not have, or lack one that it has.
    """
    if (sort := SORTS.get(node)) is not None:
        node = named(node, values.get("kind"), name or sort.name)
    known = {item.name: item for item in dataclasses.fields(typing.cast(Any, node))}
    hints = typing.get_type_hints(node)
    if unknown := [key for key in values if key not in known]:
        raise UserError(f"{name}.{unknown[0]}: this version has no such option; the run was made by another one")
    lacking = [key for key, item in known.items() if item.default is MISSING and key not in values]
    if lacking:
        raise UserError(f"{name}.{lacking[0]} is not in the record: the run was made by another version")
    nested = {key for key in values if dataclasses.is_dataclass(hints[key])}
    made = {key: restore(hints[key], values[key], f"{name}.{key}") for key in nested}
    restored: Any = node(**{**values, **made})
    return typing.cast(Node, restored.resolved() if isinstance(restored, config.Compressor) else restored)


def named(base: type[Node], kind: str | None, name: str) -> type[Node]:
    """The kind of a sort that is called so; the one that is meant where none is named.

    Args:
        base: the sort's.
        kind: its name; None for options from before they had kinds.
        name: what the options are called in messages.

    Raises:
        UserError: there is none.
    """
    known: dict[str, Any] = typing.cast(Any, kinds_of)(base)  # mypy holds no class of a type variable for hashable
    kind = kind or SORTS[base].unsaid
    if kind not in known:
        raise UserError(
            f"{name}.kind={kind}: this version has {', '.join(known)}; one of your own is found by plugins=[its module]"
        )
    return known[kind]


def kind_of(node: Any) -> str:
    """The kind that options, or what else is of a kind, belong to."""
    return _name(type(node))


def code_of(*nodes: Any) -> dict[str, Any]:
    """What the code of others is known by in a product's key, under `plugin`; empty where all kinds are ours.

    Args:
        nodes: of kinds; None is passed over. Of each, every class counts that it derives from and that is not ours.
    """
    classes = {cls: None for node in nodes if node is not None for cls in type(node).__mro__ if _is_others(cls)}
    found = [plugins.code(cls) for cls in classes]
    return {"plugin": [each for place, each in enumerate(found) if each not in found[:place]]} if found else {}


def _all(sort: Sort) -> Iterator[tuple[str, type]]:
    for file in pkgutil.iter_modules(importlib.import_module(sort.package).__path__):
        yield from _kinds_in(importlib.import_module(f"{sort.package}.{file.name}"), sort).items()
    for point in importlib.metadata.entry_points(group=sort.group):
        yield from _of_entry_point(point, sort).items()
    for module in plugins.loaded().values():
        yield from _kinds_in(module, sort).items()


def _of_entry_point(point: importlib.metadata.EntryPoint, sort: Sort) -> dict[str, type]:
    whose = f" of {point.dist.name} {point.dist.version}" if point.dist is not None else ""
    label = f"entry point {point.name} in {point.group}{whose}"
    try:
        found = point.load()
    except Exception as error:  # whatever a module does as it is imported
        raise UserError(f"{label}: does not import: {plugins.reason(error)}; repair or remove it") from error
    if isinstance(found, ModuleType):
        kinds = _kinds_in(found, sort)
    else:
        kinds = {_name(found): found} if isinstance(found, type) and issubclass(found, sort.base) else {}
    if not kinds:
        raise UserError(f"{label}: {point.value} has no class that derives from config.{sort.base.__name__}")
    return kinds


def _kinds_in(module: ModuleType, sort: Sort) -> dict[str, type]:
    """The kinds of a sort that a module has: of its own classes those from which no other of them derives.

    Of a module of others' every class counts that is not ours, so that a package may gather those of its files.

    Raises:
        UserError: two have one name.
    """
    classes = [
        node
        for name, node in vars(module).items()
        if isinstance(node, type) and issubclass(node, sort.base) and node is not sort.base
        if not name.startswith("_") and (node.__module__ == module.__name__ or _is_others(node))
    ]
    leaves = [node for node in dict.fromkeys(classes) if not any(node in other.__mro__[1:] for other in classes)]
    found: dict[str, type] = {}
    for node in leaves:
        if (other := found.setdefault(_name(node), node)) is not node:
            raise UserError(
                f"{module.__file__}: {other.__name__} and {node.__name__} are both the {sort.name} {_name(node)}; give"
                ' each a file, or a name as the default of its field: kind: str = "..."'
            )
    return found


def _name(node: type) -> str:
    """The default of its own field `kind`, or the name of its file."""
    stated = node.__dict__.get("kind")
    return stated if isinstance(stated, str) and stated != MISSING else node.__module__.rsplit(".", 1)[-1]


def _is_others(node: type) -> bool:
    """Whether a class is a kind, or what kinds derive from, in code that is not ours."""
    return node.__module__.partition(".")[0] != __name__.partition(".")[0] and issubclass(node, tuple(SORTS))


def _file(node: type) -> str:
    return str(getattr(sys.modules.get(node.__module__), "__file__", node.__module__))


def _launchers() -> dict[str, type]:
    """The options of `hydra/launcher=slurm`, `submitit_local` and `joblib`, of those whose packages are installed."""
    found: dict[str, type] = {}
    with contextlib.suppress(ModuleNotFoundError):  # a machine that runs, and sends nothing to a cluster
        from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf

        own: list[tuple[str, Any, Any]] = [("timeout_min", Optional[int], None), ("max_num_timeout", int, 0)]
        found["slurm"] = dataclasses.make_dataclass("SlurmLauncher", [("wait", bool, False)], bases=(SlurmQueueConf,))
        found["submitit_local"] = dataclasses.make_dataclass("LocalLauncher", own, bases=(LocalQueueConf,))
    with contextlib.suppress(ModuleNotFoundError):
        import hydra_plugins.hydra_joblib_launcher  # noqa: F401

        options: list[tuple[str, Any, Any]] = [("_target_", str, ""), ("n_jobs", int, -1)]
        found["joblib"] = dataclasses.make_dataclass("JoblibLauncher", options)
    return found
