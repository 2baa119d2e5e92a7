"""The record: the one JSON that a run leaves, in lm-eval's result schema plus an `idp` block."""

from __future__ import annotations

import copy
from typing import Any

from idp.store import digest

RECORD, SAMPLES = "record.json", "samples.parquet"
SCHEMA_VERSION = 1
# What may differ between two runs of one config: when and how fast, not what came out.
TIMINGS = ("seconds", "reused", "environment", "latency", "peak_memory_bytes", "device_peak_bytes")
NOT_OF_THE_RESULT = ("tracker", "output", "store")  # of the config: where things are kept, and how they are tracked


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """The record without timings, machine, places: equal for two runs of one config, however often they were killed."""
    result = copy.deepcopy(record)
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
    return digest({key: value for key, value in config.items() if key not in NOT_OF_THE_RESULT})


def heldout_loss(record: dict[str, Any]) -> float | None:
    """What a sweeper minimises: the best held-out loss in nats per token, as a mean over the trained parts."""
    losses = [part["heldout_loss"] for part in (record["idp"]["training"] or {}).values()]
    return sum(losses) / len(losses) if losses else None
