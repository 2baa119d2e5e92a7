"""The record: the one JSON that a run leaves, in lm-eval's result schema plus an `idp` block."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from idp.errors import UserError
from idp.records.schema import SCHEMA_VERSION, Record
from idp.store import digest, write_json

RECORD, SAMPLES = "record.json", "samples.parquet"
# What may differ between two runs of one config: when and how fast, not what came out.
TIMINGS = ("seconds", "total_seconds", "reused", "environment", "latency", "peak_memory_bytes", "device_peak_bytes")
# Options that older records have under other names; the hashes of runs keep the first ones.
RENAMED: dict[tuple[str, ...], str] = {("recovery", "fit", "reads"): "context_tokens"}
# The embedded model, and what it was called before its name said that it is the instruct model: records are read under
# the one, and runs keep the hashes that they had under the other.
EMBEDDED, FORMERLY = "smollm2_135m_instruct", "smollm2_135m"
NOT_OF_THE_RESULT = ("tracker", "output", "store")  # of the config: where things are kept, and how they are tracked


def load(file: Path, label: str | None = None) -> Record:
    """The record in a file.

    Args:
        file: the record.
        label: how the user named it, for messages; None: by its path.

    Raises:
        UserError: it is not one, or one of another schema, whose fields may mean something else.
    """
    label = label or str(file)
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        version = record["idp"]["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{label}: not a record of idp.run ({type(error).__name__}: {error})") from error
    if version != SCHEMA_VERSION:
        raise UserError(f"{label}: a record of schema {version}; this version reads {SCHEMA_VERSION}")
    record["idp"]["config"] = config = _renamed(record["idp"].get("config") or {}, RENAMED)
    if _call_embedded(config, FORMERLY, EMBEDDED):
        record["config"]["model"] = EMBEDDED
    return record


def save(folder: Path, record: Record) -> Path:
    """Writes a record into its run's folder, whole or not at all, and gives its place."""
    write_json(folder / RECORD, record)
    return folder / RECORD


def comparable(record: Record) -> dict[str, Any]:
    """The record without timings, machine, places: equal for two runs of one config, however often they were killed."""
    result: Any = copy.deepcopy(record)
    for name in NOT_OF_THE_RESULT:
        result["idp"]["config"].pop(name, None)

    def strip(node: Any) -> None:
        if isinstance(node, dict):
            for key in [key for key in node if key in TIMINGS]:
                del node[key]
            for value in node.values():
                strip(value)
        elif isinstance(node, list):
            for value in node:
                strip(value)

    strip(result)
    return result


def identity(config: dict[str, Any]) -> str:
    """The hash of all that decides a run's result: its config but for where things are kept and how it is tracked."""
    known = {key: value for key, value in config.items() if key not in NOT_OF_THE_RESULT}
    known = _renamed(known, {(*place, new): old for (*place, old), new in RENAMED.items()})
    _call_embedded(known, EMBEDDED, FORMERLY)
    return digest(known)


def _call_embedded(config: dict[str, Any], before: str, after: str) -> bool:
    """Gives the embedded model another name in a config, if it has the one before; whether it had."""
    model = config.get("model")
    called = isinstance(model, dict) and (model.get("source"), model.get("name")) == ("embedded", before)
    if called and isinstance(model, dict):
        model["name"] = after
    return called


def _renamed(config: dict[str, Any], names: dict[tuple[str, ...], str]) -> dict[str, Any]:
    """The config with some options under other names, given by their places."""
    config = copy.deepcopy(config)
    for (*place, old), new in names.items():
        node: Any = config
        for key in place:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict) and old in node:
            node[new] = node.pop(old)
    return config


def heldout_loss(record: Record) -> float | None:
    """What a sweeper minimises: the best held-out loss in nats per token, as a mean over the trained parts."""
    losses = [part["heldout_loss"] for part in (record["idp"]["training"] or {}).values()]
    return sum(losses) / len(losses) if losses else None
