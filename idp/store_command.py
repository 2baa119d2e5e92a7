"""`python -m idp.store list | verify | prune [FOLDER]`: what a store holds, whether it is whole, and less of it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

from idp.command import failures_in_one_line
from idp.errors import UserError
from idp.inventory import Inventory, Item
from idp.progress import progress
from idp.pruning import choose, remove
from idp.store import damage_of

HELP = {
    "list": "list the products: what each is, its size, when it was made and last used, how many runs need it",
    "verify": "hash every file; the exit status is 1 if one is damaged, which the next run then makes anew",
    "prune": "remove products that no run needs; nothing is removed before you agree, or without --yes",
}


def main(words: list[str] | None = None) -> None:
    """The command line; what goes wrong is one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m idp.store", description="What a store holds, and less of it.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in HELP.items():
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("folder", nargs="?", help="the store; left out: the config's, outputs/store")
        action.add_argument("--kind", nargs="+", metavar="KIND", help="only these, such as compress recover measure")
        if name != "verify":
            action.add_argument(
                "--runs", type=Path, nargs="+", metavar="RUNS", help="folders of runs; left out: runs beside the store"
            )
        if name == "list":
            action.add_argument("--json", action="store_true", help="print JSON")
        if name == "prune":
            _add_choices(action)
    options = parser.parse_args(words)
    with failures_in_one_line():
        {"list": show, "verify": verify, "prune": prune}[options.action](options)


def _add_choices(action: argparse.ArgumentParser) -> None:
    add = action.add_argument
    add("--orphans", action="store_true", help="what no record needs, and what was measured of it")
    add("--unused-for", metavar="TIME", help="what was not asked for as long as that: 30d, 12h (left out: a day)")
    add("--older-than", metavar="TIME", help="what was made as long ago as that")
    add("--keep", type=int, metavar="N", help="all but the N of each kind that were used last")
    add("--leftovers", action="store_true", help="what was set aside as damaged, and what killed runs left unfinished")
    add("--named", action="store_true", help="also what records need: their models cannot be opened then")
    add("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    add("--yes", action="store_true", help="do not ask")


def show(options: argparse.Namespace) -> None:
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


def verify(options: argparse.Namespace) -> None:
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


def prune(options: argparse.Namespace) -> None:
    """Removes what is asked for, but for what is in use or needed.

    Raises:
        UserError: nothing is asked for, or a product cannot be removed.
    """
    inventory = _inventory(options)
    chosen, spared = choose(inventory, _of_kind(inventory, options.kind), options)
    _say(inventory, chosen, spared, options.named)
    if not chosen or options.dry_run:
        return
    if not options.yes and not _agreed(len(chosen)):
        print("nothing was removed; --yes removes it without asking")
        return
    removed = [item for item in chosen if remove(item)]
    print(f"removed {len(removed)} products, {_size(sum(item.bytes for item in removed))}")


def _say(inventory: Inventory, chosen: list[Item], spared: Counter[str], named: bool) -> None:
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


def _inventory(options: argparse.Namespace) -> Inventory:
    root = (Path(options.folder) if options.folder else _configured()).expanduser().absolute()
    return Inventory(root, getattr(options, "runs", None) or [root.parent / "runs"])


def _of_kind(inventory: Inventory, kinds: list[str] | None) -> list[Item]:
    known = sorted({item.kind for item in inventory.items})
    if unknown := [kind for kind in kinds or () if kind not in known]:
        raise UserError(f"--kind {unknown[0]}: the store has {', '.join(known) or 'nothing'}")
    return [item for item in inventory.items if not kinds or item.kind in kinds]


def _configured() -> Path:
    from omegaconf import OmegaConf

    from idp.config import conf_dir

    return Path(OmegaConf.load(conf_dir() / "config.yaml").store)


def _times(item: Item) -> tuple[str, str]:
    return tuple(time.strftime("%Y-%m-%d %H:%M", time.localtime(when)) for when in (item.made, item.used))


def _as_json(inventory: Inventory, item: Item) -> dict[str, object]:
    made, used = (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when)) for when in (item.made, item.used))
    about = {"kind": item.kind, "key": item.key, "what": inventory.words(item), "bytes": item.bytes}
    return {**about, "made": made, "used": used, "runs": item.runs, "folder": str(item.place)}


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
