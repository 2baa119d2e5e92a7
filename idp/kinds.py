"""The kinds of recovery, bank, selector and tracker that there are: one file each, known by its name.

A file of `idp/recover`, `idp/recover/banks`, `idp/prompting/selectors` or `idp/track` that has a subclass of
`config.Recovery`, `config.Bank`, `config.Selector` or `config.Tracker` is a kind; the subclass has its options and says
how it is made. With a YAML of that name in `conf/recovery`, `conf/recovery/bank`, `conf/recovery/selector` or
`conf/tracker` it can be chosen: nothing else knows of it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
import typing
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from idp import config
from idp.errors import UserError

Node = TypeVar("Node")


@functools.cache
def recoveries() -> dict[str, type[config.Recovery]]:
    """Every recovery's options, by its kind."""
    return _kinds("idp.recover", config.Recovery)


@functools.cache
def banks() -> dict[str, type[config.Bank]]:
    """Every bank's options, by its kind."""
    return _kinds("idp.recover.banks", config.Bank)


@functools.cache
def selectors() -> dict[str, type[config.Selector]]:
    """Every selector's options, by its kind."""
    return _kinds("idp.prompting.selectors", config.Selector)


@functools.cache
def trackers() -> dict[str, type[config.Tracker]]:
    """Every tracker's options, by its kind."""
    return _kinds("idp.track", config.Tracker)


@functools.cache
def sources() -> dict[str, type[config.Corpus]]:
    """Every source of a corpus, by its name."""
    return _kinds("idp.corpora.sources", config.Corpus)


@functools.cache
def suites() -> dict[str, type[config.Suite]]:
    """Every task suite, by its name."""
    return _kinds("idp.tasks.known", config.Suite)


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


def register() -> None:
    """Makes the schema known to Hydra: `schema` for the whole, and its parts that are chosen by a YAML of their own."""
    store = ConfigStore.instance()
    store.store(name="schema", node=config.Config)
    store.store(group="schema", name="training", node=config.Training)
    store.store(group="schema", name="search", node=config.Search)
    store.store(group="schema", name="fit", node=config.Fitting)
    store.store(group="schema", name="storage", node=config.Storage)
    if (launcher := _slurm_launcher()) is not None:
        store.store(group="schema", name="slurm_launcher", node=launcher)
    for kind, node in recoveries().items():
        store.store(group="schema/recovery", name=kind, node=node)
    for kind, node in selectors().items():
        store.store(group="schema/selector", name=kind, node=node)
    for kind, node in banks().items():
        store.store(group="schema/bank", name=kind, node=node)
    for kind, node in sources().items():
        store.store(group="schema/corpus", name=kind, node=node)
    for kind, node in trackers().items():
        store.store(group="schema/tracker", name=kind, node=node)


def restore(node: type[Node], values: dict[str, Any], name: str = "") -> Node:
    """A part of the config as a record holds it: plain JSON values, as the dataclasses that they were.

    Args:
        node: the part's dataclass; for a selector the general one: its kind says which.
        values: the record's values.
        name: what the part is called in messages.

    Raises:
        UserError: the values have an option that this version does not have, or lack one that it has.
    """
    if node is config.Selector:
        if values.get("kind") not in selectors():
            raise UserError(f"{name}.kind={values.get('kind')}: this version has {', '.join(selectors())}")
        node = selectors()[values["kind"]]
    known = {item.name: item for item in dataclasses.fields(node)}
    hints = typing.get_type_hints(node)
    if unknown := [key for key in values if key not in known]:
        raise UserError(f"{name}.{unknown[0]}: this version has no such option; the run was made by another one")
    lacking = [key for key, item in known.items() if item.default is MISSING and key not in values]
    if lacking:
        raise UserError(f"{name}.{lacking[0]} is not in the record: the run was made by another version")
    nested = {key for key in values if dataclasses.is_dataclass(hints[key])}
    made = {key: restore(hints[key], values[key], f"{name}.{key}") for key in nested}
    return node(**{**values, **made})


def kind_of(node: config.Recovery | config.Bank | config.Selector | config.Tracker | config.Corpus) -> str:
    """The kind that options belong to: the name of their file."""
    return type(node).__module__.rsplit(".", 1)[-1]


def _kinds(package: str, base: type) -> dict[str, Any]:
    found = {}
    for file in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{file.name}")
        for node in vars(module).values():
            if isinstance(node, type) and issubclass(node, base) and node.__module__ == module.__name__:
                found[file.name] = node
    return found


def _slurm_launcher() -> type | None:
    """The options of `hydra/launcher=slurm`: submitit's, and `wait`; None where Hydra's submitit is not installed."""
    try:
        from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
    except ModuleNotFoundError:  # a machine that runs, and sends nothing to a cluster
        return None
    return dataclasses.make_dataclass("SlurmLauncher", [("wait", bool, False)], bases=(SlurmQueueConf,))
