"""What rows of the tables are called: kinds, and the settings in which rows of one kind differ."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from idp.records.measured import ModelScores
from idp.records.seeds import SAME_MODEL, compressed_by, repaired_by

if TYPE_CHECKING:
    from idp.records.cell import Cell

FOLLOWS = {"warmup_steps": "steps"}  # settings that are chosen by another one
NOT_NAMED = ("kind", "made_from", *SAME_MODEL)  # never what sets two rows apart
SHORT = 8  # characters of a product's key


def name(rows: Sequence[Cell]) -> None:
    """Gives each row its names, such that no two are alike.

    Rows of one kind are told apart by the settings that differ between them. Where they differ in nothing that a
    config says, by the products that hold them.
    """
    by_key = {row.first.keys["recover"]: row.first for row in rows if "recover" in row.first.keys}
    kinds: dict[str, Callable[[ModelScores], str]] = {
        "compressor": lambda model: model.compressor,
        "recovery": _recovery,
    }
    for part, kind in kinds.items():
        alike: dict[str, list[Cell]] = defaultdict(list)
        for row in rows:
            setattr(row, part, kind(row.first))
            alike[getattr(row, part)].append(row)
        for members in alike.values():
            options = [_options(row.first, part, by_key) for row in members]
            apart = _apart(options)
            for row, settings in zip(members, options, strict=True):
                differing = [f"{apart[key]}={_value(settings.get(key))}" for key in apart if key in settings]
                setattr(row, part, " ".join([getattr(row, part), *differing]))
    _tell_apart(rows)


def natural(name: str) -> list[tuple[bool, float, str]]:
    """A key to sort names by, their numbers by size: 16 samples before 256, 2 bits before 10."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(is_number := n % 2 == 1, float(part) if is_number else 0.0, part) for n, part in enumerate(parts)]


def _recovery(model: ModelScores) -> str:
    if model.transfer is not None:
        learned = model.transfer
        return f"transfer of {learned['kind']} ({learned['compressor'] or '?'}, {learned['corpus'] or '?'})"
    if model.selector is None:
        return model.recovery
    return f"{model.recovery} ({model.selector}{', upper bound: uses the labels' if model.uses_labels else ''})"


def _options(model: ModelScores, part: str, by_key: dict[str, ModelScores]) -> dict[str, Any]:
    if part == "compressor":
        return dict(_flat(compressed_by(model) or {}))
    return dict(_flat(repaired_by(model, by_key))) if model.recovery != "none" else {}


def _tell_apart(rows: Sequence[Cell]) -> None:
    """Adds the product's key to names that are still alike, of the weights first: repairs have that name as well."""
    weights: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        weights[row.compressor].add(row.weights)
    for row in rows:
        if len(weights[row.compressor]) > 1 and (key := row.first.keys.get("compress")):
            row.compressor = f"{row.compressor} product={key[:SHORT]}"
    repairs: dict[tuple[str, str, str], list[Cell]] = defaultdict(list)
    for row in rows:
        repairs[row.first.role, row.compressor, row.recovery].append(row)
    for alike in repairs.values():
        for row in alike if len(alike) > 1 else ():
            keys = row.first.keys
            products = [keys[stage][:SHORT] for stage in ("recover", "select") if stage in keys]
            row.recovery = f"{row.recovery} product={'+'.join(products) or row.first.id[:SHORT]}"


def _flat(node: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in node.items():
        if isinstance(value, dict):
            if "kind" in value:
                pairs.append((f"{above}{key}", value["kind"]))
            pairs += _flat(value, f"{above}{key}.")
        elif key.rpartition(".")[2] not in NOT_NAMED:
            pairs.append((f"{above}{key}", value))
    return pairs


def _apart(configs: list[dict[str, Any]]) -> dict[str, str]:
    """The settings in which configs differ, and the shortest name of each.

    Options of a kind, such as a bank's, count where two of that kind differ in them: else the kind says it all.
    """

    def differs(key: str) -> bool:
        values: dict[str, set[str]] = defaultdict(set)
        for config in configs:
            values[repr(config.get(key.rpartition(".")[0]))].add(repr(config.get(key)))
        return any(len(each) > 1 for each in values.values())

    differing = [key for key in {key: None for config in configs for key in config} if differs(key)]
    differing = [key for key in differing if not _goes_without_saying(key, differing, configs)]
    ends = [key.rsplit(".", 1)[-1] for key in differing]
    return {
        key: end if ends.count(end) == 1 else ".".join(key.split(".")[-2:])
        for key, end in zip(differing, ends, strict=True)
    }


def _goes_without_saying(key: str, differing: list[str], configs: list[dict[str, Any]]) -> bool:
    """Whether a setting follows from another one that is said, as the warm-up does where it grows with the steps."""
    above, _, end = key.rpartition(".")
    if end not in FOLLOWS:
        return False
    leader = f"{above}.{FOLLOWS[end]}"
    pairs = {(repr(config.get(leader)), repr(config.get(key))) for config in configs}
    return leader in differing and len(pairs) == len({first for first, _ in pairs})


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(_value, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)
