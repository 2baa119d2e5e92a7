"""`idp store list | verify | prune [FOLDER]`: what a store holds, whether it is whole, and less of it."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from idp.command import failures_in_one_line, help_text, parse_action, wants_help, word
from idp.errors import UserError
from idp.inventory import Inventory, StoreItem
from idp.progress import progress
from idp.pruning import Choice, choose, remove
from idp.store import damage_of

OPENING = """idp store: what a store holds, whether it is whole, and less of it

  idp store list        list the products: what each is, its size, when it was made and last used, how many runs need it
  idp store verify      hash every file; the exit status is 1 if one is damaged, which the next run then makes anew
  idp store prune       remove products that no run needs; nothing is removed before you agree, or without --yes"""


@dataclass
class Verify:
    """Of what looks at a store."""

    folder: str | None = word("the store (default: the config's, outputs/store)", positional=True, default=None)
    kind: list[str] = word("only these, such as compress recover measure", default_factory=list)


@dataclass
class List(Verify):
    """Of the list."""

    runs: list[str] = word("folders of runs (default: runs beside the store)", default_factory=list)
    json: bool = word("print JSON", default=False)


@dataclass
class Prune(Choice, Verify):
    """Of the removal."""

    runs: list[str] = word("folders of runs (default: runs beside the store)", default_factory=list)
    dry_run: bool = word("say what would be removed, and remove nothing", default=False)
    yes: bool = word("do not ask", default=False)


OPTIONS = {"list": List, "verify": Verify, "prune": Prune}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; what goes wrong is one line on standard error."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or wants_help(argv):
        print(OPENING)
        for name, kind in OPTIONS.items():
            print(help_text(kind, f"\n{name}:"))
        sys.exit(0 if argv else "error: which action?")
    with failures_in_one_line(command="store"):
        _, options = parse_action(OPTIONS, argv, "action")
        if isinstance(options, Prune):
            prune(options)
        elif isinstance(options, List):
            show(options)
        else:
            verify(options)


def show(options: List) -> None:
    """Prints the products, the largest of each kind first, and what each kind takes."""
    from tabulate import tabulate

    inventory = _inventory(options)
    items = _of_kind(inventory, options.kind)
    if options.json:
        print(json.dumps([_as_json(inventory, item) for item in items], indent=1))
        return
    rows = [
        [item.kind, item.key[:12], inventory.words(item), _size(item.bytes), *_times(item), str(len(item.runs) or "")]
        for item in items
    ]
    header = ["kind", "key", "what", "size", "made", "last used", "runs"]
    print(
        tabulate(
            rows, header, "plain", disable_numparse=True, colalign=[*["left"] * 3, "right", "left", "left", "right"]
        )
    )
    count, size = Counter(item.kind for item in items), Counter[str]()
    for item in items:
        size[item.kind] += item.bytes
    totals = [[kind, str(count[kind]), _size(size[kind])] for kind, _ in size.most_common()]
    totals.append(["all", str(len(items)), _size(sum(size.values()))])
    header = ["kind", "products", "size"]
    print("", tabulate(totals, header, "plain", disable_numparse=True, colalign=["left", "right", "right"]), sep="\n")


def verify(options: Verify) -> None:
    """Hashes every file of every product."""
    inventory = _inventory(options)
    items = [item for item in _of_kind(inventory, options.kind) if not item.left]
    damaged = 0
    with progress(sum(item.bytes for item in items), "verify", unit="bytes") as bar:
        for item in items:
            if item.place.exists() and (damage := damage_of(item.place, by_hash=True)) is not None:
                damaged += 1
                print(f"{item.place}: {damage}", flush=True)
            bar.update(item.bytes)
    print(f"{len(items)} products, {_size(sum(item.bytes for item in items))}: {damaged or 'none'} damaged")
    if damaged:
        sys.exit(1)


def prune(options: Prune) -> None:
    """Removes what is asked for, but for what is in use or needed.

    Raises:
        UserError: nothing is asked for, or a product cannot be removed.
    """
    inventory = _inventory(options)
    chosen, spared = choose(inventory, _of_kind(inventory, options.kind), options, bool(options.kind))
    _say(inventory, chosen, spared, options.named)
    if not chosen or options.dry_run:
        return
    if not options.yes and not _agreed(len(chosen)):
        print("nothing was removed; --yes removes it without asking")
        return
    removed = [item for item in chosen if remove(item)]
    print(f"removed {len(removed)} products, {_size(sum(item.bytes for item in removed))}")


def _say(inventory: Inventory, chosen: list[StoreItem], spared: Counter[str], named: bool) -> None:
    for item in chosen:
        print(f"{item.kind} {item.key[:12]}  {inventory.words(item)}  {_size(item.bytes)}, last used {_times(item)[1]}")
        if named and item.runs:
            print(f"  the model of {', '.join(item.runs)} cannot be opened or exported then, until it is run again")
    print(f"to remove: {len(chosen)} products, {_size(sum(item.bytes for item in chosen))}")
    for why, count in spared.items():
        print(f"left: {count} {why}")


def _agreed(count: int) -> bool:
    if not sys.stdin.isatty():
        return False
    return input(f"Remove these {count} products? [y/N] ").strip().lower() in ("y", "yes")


def _inventory(options: Verify) -> Inventory:
    root = (Path(options.folder) if options.folder else _configured()).expanduser().absolute()
    return Inventory(root, [Path(each) for each in getattr(options, "runs", ())] or [root.parent / "runs"])


def _of_kind(inventory: Inventory, kinds: Sequence[str]) -> list[StoreItem]:
    known = sorted({item.kind for item in inventory.items})
    if unknown := [kind for kind in kinds if kind not in known]:
        raise UserError(f"--kind {unknown[0]}: the store has {', '.join(known) or 'nothing'}")
    return [item for item in inventory.items if not kinds or item.kind in kinds]


def _configured() -> Path:
    from omegaconf import OmegaConf

    from idp.config import conf_dir

    return Path(OmegaConf.load(conf_dir() / "config.yaml").store)


def _times(item: StoreItem) -> list[str]:
    return [time.strftime("%Y-%m-%d %H:%M", time.localtime(when)) for when in (item.made, item.used)]


def _as_json(inventory: Inventory, item: StoreItem) -> dict[str, object]:
    made, used = (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when)) for when in (item.made, item.used))
    about = {"kind": item.kind, "key": item.key, "what": inventory.words(item), "bytes": item.bytes}
    return {**about, "made": made, "used": used, "runs": item.runs, "folder": str(item.place)}


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
