"""What a repair is known by in the store, before it is made: all that decides it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from idp import config as schema
from idp import models, registry
from idp.beginning import Beginning
from idp.config import CALIBRATION, DENSE, TEXT
from idp.prompting import storage
from idp.recover.context import CalibrationText
from idp.store import Identity

if TYPE_CHECKING:
    from idp.corpora.corpus import Text

STORAGE_VERSION = EMPTY_VERSION = 1


@dataclass(frozen=True)
class Basis:
    """What a repair can be made from, products by their keys: none of them need be there."""

    model: schema.Model
    dense: str
    compressed: str
    text: Text
    calibration: CalibrationText | None
    seed: int


def needs(recovery: schema.Recovery) -> frozenset[str]:
    """What a recovery reads, and what is made beneath it."""
    beneath = recovery.beneath
    return recovery.needs | (needs(beneath) if beneath is not None else frozenset())


def identity_of(recovery: schema.Recovery, basis: Basis, beginning: Beginning) -> Identity:
    """A repair as it is made: how one of its prompts is chosen and in how few bits they are stored comes after it.

    Args:
        recovery: what is made.
        basis: what from.
        beginning: the BOS of every input, and its place about a prompt.
    """
    config = _config(recovery, basis) | beginning.identity()
    return Identity("recover", basis.compressed, config, recovery.version, recovery.label)


def with_empty_identity(repair: str) -> Identity:
    """The repair of that key with the empty prompt in its bank."""
    return Identity("recover", repair, {"empty_prompt": True}, EMPTY_VERSION, "with the empty prompt")


def stored_identity(repair: str, options: schema.Storage) -> Identity:
    """The repair of that key with its prompts stored in few bits."""
    config = {"storage": storage.described(options)}
    return Identity("recover", repair, config, STORAGE_VERSION, f"stored in {options.bits} bits")


def identities(recovery: schema.Recovery, basis: Basis, bos: tuple[int, ...]) -> list[tuple[schema.Recovery, Identity]]:
    """What the products of a repair are, in the order in which they are made.

    Args:
        recovery: what to make, with what `Recovery.find` found in its options.
        basis: what from.
        bos: the model's.

    Returns:
        each with the recovery that makes it; the last is the repair. Empty where nothing is repaired.
    """
    if not recovery.repairs:
        return []
    found = identities(recovery.beneath, basis, bos) if recovery.beneath is not None else []
    made = identity_of(recovery, basis, recovery.beginning(bos))
    found.append((recovery, made))
    if recovery.holds_empty:
        made = with_empty_identity(made.key)
        found.append((recovery, made))
    if recovery.stored is not None and not storage.is_plain(recovery.stored):
        found.append((recovery, stored_identity(made.key, recovery.stored)))
    return found


def _config(recovery: schema.Recovery, basis: Basis) -> dict[str, Any]:
    content = recovery.content()
    if content is not None:
        return content
    found: dict[str, Any] = {"recovery": recovery.options(), **models.numerics(basis.model)}
    read = needs(recovery)
    if _seeded(recovery):
        found["seed"] = basis.seed
    if TEXT in read:
        found["corpus"] = basis.text.fingerprint
    if DENSE in read:
        found["teacher"] = basis.dense
    if CALIBRATION in read and basis.calibration is not None:
        found["calibration"], *beneath = [basis.calibration.read_by(each).identity() for each in _calibrated(recovery)]
        found |= {"calibration_beneath": beneath} if beneath else {}
    return found | registry.code_of(*_kinds(recovery))


def _seeded(recovery: schema.Recovery) -> bool:
    return recovery.seeded or (recovery.beneath is not None and _seeded(recovery.beneath))


def _calibrated(recovery: schema.Recovery) -> list[schema.Recovery]:
    """What reads calibration text, the recovery first, then what is made beneath it."""
    beneath = _calibrated(recovery.beneath) if recovery.beneath is not None else []
    return [recovery, *beneath] if CALIBRATION in recovery.needs else beneath


def _kinds(recovery: schema.Recovery) -> Iterator[Any]:
    """What makes a repair, whose code its key knows where it is another's: not what chooses among its prompts."""
    yield recovery
    yield recovery.parts.get("bank")
    if recovery.beneath is not None:
        yield from _kinds(recovery.beneath)
