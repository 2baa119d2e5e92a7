"""What a config must hold beyond its types: ranges, choices, and what its parts ask of one another.

All of it is known before any model is loaded, and each mistake is one line: what, where, and what to do.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from idp import registry
from idp.config import Compressor, Config, Recovery, choices_of, one_line
from idp.errors import UserError


def check(config: DictConfig) -> Config:
    """The config as dataclasses, every interpolation resolved and every value checked.

    Raises:
        UserError: a value is missing, of the wrong type, or outside its choices or range.
    """
    registry.load_plugins(config.get("plugins") or [])  # in a process that did not compose it
    try:
        typed = cast(Config, OmegaConf.to_object(_typed(config)))
    except UserError:
        raise
    except Exception as error:  # OmegaConf's errors span several lines: keep the first and the key
        raise UserError(one_line(error)) from error
    typed.compressor = typed.compressor.resolved()
    typed.corpus = registry.corpus(typed.corpus)
    _check_fields(typed, "")
    _check_together(typed)
    return typed


def _check_fields(node: Any, prefix: str) -> None:
    if added := vars(node).keys() - {item.name for item in dataclasses.fields(node)}:  # Hydra's `+` adds anything
        raise UserError(f"{prefix}{min(added)}: there is no such option; drop it (see python -m idp.run --help)")
    for item in dataclasses.fields(node):
        value, name = getattr(node, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value):
            _check_fields(value, f"{name}.")
            continue
        choices = choices_of(item)
        if choices and value not in choices:
            known = ", ".join("null" if choice is None else str(choice) for choice in choices)
            raise UserError(f"{name}={value}: choose one of {known}")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(value, list) and isinstance(number, (list, dict)):  # OmegaConf lets it pass
                raise UserError(f"{name}={value}: give a plain list ({item.metadata['help']})")
            _check_range(name, number, item.metadata)


def _check_range(name: str, number: Any, metadata: Any) -> None:
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return
    low, high = metadata.get("minimum"), metadata.get("maximum")
    endless = isinstance(number, float) and not math.isfinite(number)
    if endless or (low is not None and number < low) or (high is not None and number > high):
        wanted = "a finite number" if low is None else f"at least {low:g}"
        wanted = wanted if high is None else f"from {low:.10g} to {high:.10g}"
        raise UserError(f"{name}={number}: must be {wanted} ({metadata['help']})")


def _typed(config: DictConfig) -> DictConfig:
    """The config with its compressor's options typed by their kind, where their YAML does not name a schema."""
    values = config.get("compressor")
    if values is None or issubclass(cast(type, OmegaConf.get_type(values)), Compressor):
        return config
    node = registry.named(Compressor, values.get("kind"), "compressor")
    typed = copy.deepcopy(config)
    try:
        typed.compressor = OmegaConf.merge(OmegaConf.structured(node), values)
    except Exception as error:  # as above; the key is that within the part
        raise UserError(f"compressor.{one_line(error)}") from error
    return typed


def _check_kinds(config: Config) -> None:
    recovery = config.recovery
    parts: dict[str, Any] = {"compressor": config.compressor, "recovery": recovery}
    parts |= {f"recovery/{group}": node for group, node in recovery.parts.items()}
    for group, node in parts.items():
        if node.kind != (kind := registry.kind_of(node)):
            name = group.replace("/", ".")
            raise UserError(f"{name}.kind={node.kind}: its options are those of {kind}; say {group}={node.kind}")


def _check_name(name: str) -> None:
    """It is what tables call the model; in folders' names odd letters of it are dashes."""
    if not name.strip() or not name.isprintable():
        raise UserError(f"model.name={name!r}: tables name the model by it; give it a name, such as model.name=mine")


def _check_label(compressor: Compressor) -> None:
    """It is a part of folders' names, and a word in tables."""
    label = compressor.label
    if not label or "/" in label or not label.isprintable():
        raise UserError(
            f"compressor.kind={compressor.kind}: its label is {label!r}, which cannot be a part of a folder's name; use"
            " letters, digits, _ and -"
        )
    if (label == "none") != (not compressor.needs):  # which records and tables take for the dense model
        raise UserError(
            f"compressor.kind={compressor.kind}: the label none is that of the dense model, of a compressor that needs"
            f" nothing; its label is {label}, and it needs {', '.join(sorted(compressor.needs)) or 'nothing'}"
        )


def _check_teacher(recovery: Recovery, device_map: str | None) -> None:
    """A streamed teacher comes to one device."""
    for part in (recovery, recovery.beneath):
        training = getattr(part, "training", None)
        if device_map and training is not None and (training.objective, training.teacher) == ("distill", "streamed"):
            raise UserError(
                f"recovery.training.teacher=streamed: model.device_map={device_map} spreads the model over devices, and"
                " layers are brought to one; use recovery.training.teacher=resident, or model.device_map=null"
            )


def _check_together(config: Config) -> None:
    recovery = config.recovery
    _check_kinds(config)
    config.compressor.check()
    config.tracker.check()
    _check_name(config.model.name)
    _check_label(config.compressor)
    if not config.task.names:
        raise UserError("task.names is empty: name at least one task, such as task=arc_easy or task=all")
    for name in ("batch_sizes", "input_tokens"):
        if not getattr(config.latency, name):
            raise UserError(f"latency.{name} is empty: give at least one number, such as latency.{name}=[1]")
    config.corpus.check()
    recovery.check()
    _check_teacher(recovery, config.model.device_map)
    selector = recovery.choice.selector if recovery.choice is not None else None
    if selector is not None and selector.uses_labels and config.latency.enabled:
        raise UserError(
            f"recovery.selector={selector.kind} chooses with the answers in hand and runs no model: it has no latency;"
            " use latency=none or another selector"
        )
