"""What a config must hold beyond its types: ranges, choices, and what its parts ask of one another.

All of it is known before any model is loaded, and each mistake is one line: what, where, and what to do.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from omegaconf import DictConfig, OmegaConf

from idp.config import Compressor, Config, Quantization, Recovery, Sparsity, n_of_m, one_line
from idp.errors import UserError
from idp.kinds import corpus, kind_of


def check(config: DictConfig) -> Config:
    """The config as dataclasses, every interpolation resolved and every value checked.

    Raises:
        UserError: a value is missing, of the wrong type, or outside its choices or range.
    """
    try:
        typed = OmegaConf.to_object(config)
    except Exception as error:  # OmegaConf's errors span several lines: keep the first and the key
        raise UserError(one_line(error)) from error
    typed.corpus = corpus(typed.corpus)
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
        choices = item.metadata.get("choices", ())
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


def _check_sparsity(sparsity: Sparsity) -> None:
    level, method, pattern = sparsity.level, sparsity.method, sparsity.pattern
    if pattern is not None:
        keep, of = n_of_m(pattern)
        if method is not None and abs(level - (1 - keep / of)) > 1e-6:
            raise UserError(
                f"compressor.sparsity.level={level}: the pattern {pattern} sets {1 - keep / of:g} of the weights to"
                f" zero; say compressor.sparsity.level={1 - keep / of:g}, or compressor.sparsity.pattern=null"
            )
    if method is None and (level > 0 or pattern is not None):
        given = f"pattern={pattern}" if pattern is not None else f"level={level}"
        raise UserError(
            f"compressor.sparsity.{given}: nothing would prune; add compressor.sparsity.method=magnitude, wanda or"
            " sparsegpt"
        )
    if method is not None and level == 0:
        raise UserError(
            f"compressor.sparsity.level=0: {method} would prune nothing; give a level between 0 and 1, or"
            " compressor.sparsity.method=null"
        )


def _check_quantization(quantization: Quantization) -> None:
    size = quantization.group_size
    if size != "auto" and not (isinstance(size, int) and not isinstance(size, bool) and (size == -1 or size > 0)):
        raise UserError(f"compressor.quantization.group_size={size}: use auto, -1 (a whole row) or a positive number")
    if quantization.method is None and quantization.bits is not None:
        raise UserError(
            f"compressor.quantization.bits={quantization.bits}: nothing would quantise; add"
            " compressor.quantization.method=gptq, rtn or awq"
        )
    if quantization.method is not None and quantization.bits is None:
        raise UserError(
            f"compressor.quantization.bits is null: {quantization.method} needs compressor.quantization.bits=2, 3, 4"
            " or 8"
        )
    if quantization.actorder is not None and quantization.method != "gptq":
        raise UserError(
            f"compressor.quantization.actorder={quantization.actorder}: only gptq goes through columns in an order;"
            " use null"
        )


def _check_external(compressor: Compressor) -> None:
    if compressor.path == "":
        raise UserError(
            "compressor.path is not set: give a folder, hub id or GGUF file, such as compressor.path=/models/mine-4bit"
        )
    for part in ("sparsity", "quantization"):
        if compressor.path is not None and getattr(compressor, part).method is not None:
            raise UserError(
                f"compressor.path={compressor.path}: it is compressed already; drop compressor.{part}, or drop the path"
            )
    if compressor.path is None and compressor.revision is not None:
        raise UserError(f"compressor.revision={compressor.revision}: of what? Add compressor.path=<hub id>, or drop it")


def _check_kinds(recovery: Recovery) -> None:
    parts = {"recovery": recovery, **{f"recovery/{group}": node for group, node in recovery.parts.items()}}
    for group, node in parts.items():
        if node.kind != kind_of(node):
            name = group.replace("/", ".")
            raise UserError(
                f"{name}.kind={node.kind}: its options are those of {kind_of(node)}; say {group}={node.kind}"
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
    _check_sparsity(config.compressor.sparsity)
    _check_quantization(config.compressor.quantization)
    _check_external(config.compressor)
    if not config.task.names:
        raise UserError("task.names is empty: name at least one task, such as task=arc_easy or task=all")
    for name in ("batch_sizes", "input_tokens"):
        if not getattr(config.latency, name):
            raise UserError(f"latency.{name} is empty: give at least one number, such as latency.{name}=[1]")
    config.corpus.check()
    _check_kinds(recovery)
    recovery.check()
    _check_teacher(recovery, config.model.device_map)
    selector = recovery.choice.selector if recovery.choice is not None else None
    if selector is not None and selector.peeks and config.latency.enabled:
        raise UserError(
            f"recovery.selector={selector.kind} chooses with the answers in hand and runs no model: it has no latency;"
            " use latency=none or another selector"
        )
