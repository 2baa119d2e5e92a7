"""What a repair is known by in the store: all that decides it, but for the model that it repairs."""

from __future__ import annotations

from typing import Any

from idp import config as schema
from idp import kinds, models
from idp.config import CALIBRATION, DENSE, TEXT
from idp.recover.making import Sources


def needs(recovery: schema.Recovery) -> frozenset[str]:
    """What a recovery reads, and what is made beneath it."""
    beneath = recovery.beneath
    return recovery.needs | (needs(beneath) if beneath is not None else frozenset())


def identity(recovery: schema.Recovery, sources: Sources) -> dict[str, Any]:
    """All that decides a repair: its options, the numerics, and what it reads.

    How one of its prompts is chosen and in how many bits they are stored comes after it.
    """
    content = recovery.content()
    if content is not None:
        return content
    found: dict[str, Any] = {"recovery": recovery.options(), **models.numerics(sources.model)}
    read = needs(recovery)
    if _seeded(recovery):
        found["seed"] = sources.seed
    if TEXT in read:
        found["corpus"] = sources.text.fingerprint
    if DENSE in read:
        found["teacher"] = sources.dense.key
    if CALIBRATION in read and sources.calibration is not None:
        found["calibration"] = sources.calibration.identity()
    return found | kinds.code_of(*_made_by(recovery))


def _made_by(recovery: schema.Recovery | None) -> list[Any]:
    """All that is of a kind and decides the repair: not the selector, which is chosen once the repair is there."""
    if recovery is None:
        return []
    selector = recovery.choice.selector if recovery.choice is not None else None
    parts = [part for part in recovery.parts.values() if part is not selector]
    return [recovery, *parts, *_made_by(recovery.beneath)]


def _seeded(recovery: schema.Recovery) -> bool:
    return recovery.seeded or (recovery.beneath is not None and _seeded(recovery.beneath))
