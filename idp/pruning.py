"""Which products of a store can go, and their removal: none that is in use, and none that a record needs unasked."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from idp.command import word
from idp.errors import UserError
from idp.inventory import Inventory, StoreItem
from idp.store.lease import lease_at
from idp.store.modes import can_be_removed
from idp.store.verification import Stamps

UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass
class Choice:
    """What of a store may go; each option leaves fewer."""

    orphans: bool = word("what no record needs, and what was measured of it", default=False)
    unused_for: str | None = word("what was not asked for as long as that: 30d, 12h (left out: a day)", default=None)
    older_than: str | None = word("what was made as long ago as that", default=None)
    keep: int | None = word("all but so many of each kind, those that were used last", default=None)
    leftovers: bool = word("what was set aside as damaged, and what killed runs left unfinished", default=False)
    named: bool = word("also what records need: their models cannot be opened then", default=False)


def choose(
    inventory: Inventory, items: list[StoreItem], options: Choice, of_kinds: bool
) -> tuple[list[StoreItem], Counter[str]]:
    """What to remove, and how many of those asked for are spared for which reason.

    Args:
        inventory: of the store.
        items: those that are looked at.
        options: the command line's.
        of_kinds: whether `items` are of kinds that the command line names.

    Raises:
        UserError: nothing is asked for, a time is none, or there are no records.
    """
    asked = (of_kinds, options.orphans, options.unused_for, options.older_than, options.leftovers)
    if not any(asked) and options.keep is None:
        raise UserError("prune: say what: --orphans, --leftovers, --kind, --unused-for, --older-than or --keep")
    if not options.named and not inventory.records:
        where = ", ".join(map(str, inventory.runs))
        raise UserError(f"prune: no record under {where} says what is needed; give the folders of runs with --runs")
    if options.keep is not None and options.keep < 0:
        raise UserError(f"--keep {options.keep}: a number of products, 0 or more")
    unused, older = _duration("--unused-for", options.unused_for or "1d"), None
    if options.older_than:
        older = _duration("--older-than", options.older_than)
    items = [item for item in items if bool(item.left) == options.leftovers]
    recent = _recent(items, options.keep)
    going_on, now = inventory.going_on(), time.time()
    chosen, spared = [], Counter[str]()
    for item in items:
        if (options.orphans and item.key in inventory.needed) or item.place in recent:
            continue
        if older is not None and now - item.made < older:
            continue
        if now - item.used < unused:
            if not options.unused_for:
                spared["used within the last day (--unused-for 0d takes it as well)"] += 1
        elif item.leased:
            spared["being made"] += 1
        elif going_on is not None and item.used >= going_on[1]:
            spared[f"used since {going_on[0]} began, which is going on"] += 1
        elif item.key in inventory.needed and item.stands_alone and not item.left and not options.named:
            spared["needed by records (--named takes it as well)"] += 1
        else:
            chosen.append(item)
    return chosen, spared


def _recent(items: list[StoreItem], keep: int | None) -> set[Path]:
    """The `keep` of each kind that were used last."""
    by_kind = defaultdict(list)
    for item in sorted(items, key=lambda item: -item.used):
        by_kind[item.kind].append(item.place)
    return {place for places in by_kind.values() for place in places[: keep or 0]}


def remove(item: StoreItem) -> bool:
    """Removes one product under its maker's lease; False where another process holds that, or has used it meanwhile.

    Raises:
        UserError: the disk does not let it.
    """
    if not can_be_removed(item.place):
        raise UserError(f"{item.place}: cannot be removed (it is another user's); nothing of it was touched")
    item.lock.parent.mkdir(exist_ok=True)
    held = lease_at(item.lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        print(f"{item.place}: being made; left")
        return False
    gone = item.place.with_name(f"{item.key}.removed-{os.getpid()}")
    try:
        if item.place.stat().st_mtime != item.used:
            print(f"{item.place}: used meanwhile; left")
            return False
        if item.place != gone:
            os.rename(item.place, gone)  # at once: no reader finds half of it
        Stamps(item.place).forget()
        shutil.rmtree(gone)
    except OSError as error:
        raise UserError(f"{item.place}: cannot be removed ({error.strerror or error})") from error
    finally:
        held.release()
    return True


def _duration(option: str, text: str) -> float:
    """Seconds in `30d`, `12h`, `45m` or `2w`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text)
    if match is None:
        raise UserError(f"{option} {text}: give a number and a unit, such as 30d, 12h, 45m or 2w")
    return float(match[1]) * UNITS[match[2]]
