"""`idp fetch model=... corpus=... task=...`: fetches what a run or a sweep (`-m`) takes from the hub.

The overrides are those of `idp run`. Afterwards the same overrides run there on a machine without a network, which
sees the same store and the same HF_HOME.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.command import failures_in_one_line, nearest, quiet_libraries, wants_help
from idp.errors import UserError

if TYPE_CHECKING:
    from idp.config import Config, Task
    from idp.store import Product, Store

quiet_libraries()

HELP = """Fetches what runs take from the Hugging Face hub: models, tokenizers, corpora, the tasks' documents.

  idp fetch model=llama_7b corpus=c4 task=all "evaluation.perplexity=[wikitext2,c4]"
  idp fetch -m +experiment=nine_tasks model=llama_7b budget=paper corpus=c4

The overrides are those of idp run; with -m, of a sweep. The exit status is 1 if something is missing.

  -m, --multirun       what all runs of a sweep take
  --check              fetch nothing: say what a machine without a network would find, and what it would miss
  --update             resolve branches anew (a store keeps to the commits that it saw first), and documents with them
"""
FLAGS = ("-m", "--multirun", "--check", "--update")
FETCHED, THERE, LOCAL, MISSING = "fetched", "there", "local", "missing"
SHORT = 12  # characters of a commit


@dataclass(frozen=True)
class Need:
    """One thing that a run takes from elsewhere: `take` finds it, fetches it if need be, and says where it is from."""

    what: str  # model, compressor, corpus or task
    name: str
    identity: Any  # the same for runs that take the same thing
    take: Callable[[Store], str]


@dataclass(frozen=True)
class FetchItem:
    """What became of a need."""

    need: Need
    state: str  # FETCHED, THERE (fetched earlier), LOCAL (nothing to fetch) or MISSING
    detail: str  # where it is from, or why it is missing
    bytes: int  # of what was fetched, now or earlier


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: a line for each thing, and one on standard error if something is missing."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if wants_help(argv):
        print(HELP)
        return
    from idp.usage import explain

    flags = set(FLAGS) & set(argv)
    with failures_in_one_line("interrupted; the same command goes on where it stopped", explain):
        if strange := [word for word in argv if word.startswith("-") and word not in flags]:
            hint = nearest(strange[0], FLAGS)
            raise UserError(
                f"{strange[0]}: options are -m, --check and --update; all else are overrides of idp run{hint}"
            )
        items = []
        for item in fetch(
            [word for word in argv if word not in flags],
            sweep=bool(flags & {"-m", "--multirun"}),
            check="--check" in flags,
            update="--update" in flags,
        ):
            print(line(item), flush=True)
            items.append(item)
        missing = [item for item in items if item.state == MISSING]
        new = sum(item.bytes for item in items if item.state == FETCHED)
        print(f"{len(items) - len(missing)} of {len(items)} are there, {size(new)} fetched now", flush=True)
        if missing:
            names = ", ".join(f"{item.need.what} {item.need.name}" for item in missing)
            raise UserError(f"{len(missing)} of {len(items)} missing: {names}")


def fetch(argv: Sequence[str], sweep: bool = False, check: bool = False, update: bool = False) -> Iterator[FetchItem]:
    """What each run of a command line takes from elsewhere, each thing once; fetched unless it is there.

    Args:
        argv: those of `idp run`.
        sweep: whether they are of a sweep.
        check: keep to what is on this machine, as one without a network would.
        update: resolve branches anew.

    Raises:
        UserError: a config that no run could have, or a store that cannot be written.
    """
    from idp import fetched, hub
    from idp.composed import configs
    from idp.store import Store, digest

    seen = set()
    with hub.offline() if check else contextlib.nullcontext(), fetched.anew() if update else contextlib.nullcontext():
        for config in configs(argv, sweep):
            store = Store(Path(config.store).expanduser())
            if update:
                store.check_writable()
            for need in needs(config):
                if (known := digest([need.what, need.identity, str(store.root)])) not in seen:
                    seen.add(known)
                    yield _taken(need, store)


def needs(config: Config) -> Iterator[Need]:
    """What a run takes from elsewhere.

    Args:
        config: the run's.
    """
    from idp.config import WEIGHTS, values_of

    model, compressor = config.model, config.compressor
    yield Need("model", model.name, asdict(model), lambda store: _model(config, store))
    if WEIGHTS in compressor.needs:
        yield Need("compressor", compressor.origin, values_of(compressor), lambda store: _compressor(config, store))
    corpora = ["corpus", compressor.calibration.corpus or "corpus", *config.evaluation.perplexity]
    for name in dict.fromkeys(config.corpus.name if name == "corpus" else name for name in corpora):
        options = asdict(config.corpus) if name == config.corpus.name else None
        yield Need("corpus", name, [name, options, config.data_dir], _corpus(name, config))
    yield from _tasks(config)


def line(item: FetchItem) -> str:
    """One item in a line."""
    bytes_of = f", {size(item.bytes)}" if item.bytes else ""
    return f"{item.state:<8} {item.need.what:<10} {item.need.name:<20} {item.detail}{bytes_of}"


def size(count: float) -> str:
    """Bytes in the largest unit that leaves a whole one, such as `13.5 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            break
        count, unit = count / 1000, {"bytes": "kB", "kB": "MB", "MB": "GB", "GB": "TB"}[unit]
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"


def _taken(need: Need, store: Store) -> FetchItem:
    from idp import fetched

    with fetched.noting() as products:
        try:
            detail = need.take(store)
        except UserError as error:
            return FetchItem(need, MISSING, str(error), 0)
    state = LOCAL
    if products:
        state = THERE if all(product.reused for product in products) else FETCHED
    return FetchItem(need, state, detail, sum(map(_bytes, products)))


def _bytes(product: Product) -> int:
    """Bytes of what was fetched, in the product or where it says; what a branch was resolved to counts for nothing."""
    from idp import fetched

    files = product.manifest["files"]
    if fetched.FILES in files:
        return sum(product.read(fetched.FILES)["files"].values())
    if {fetched.REPOSITORY, fetched.COMMIT} & set(files):
        return 0
    return sum((product.path / name).stat().st_size for name in files)


def _model(config: Config, store: Store) -> str:
    from idp import models

    source = models.find_model(config.model, store)
    if source.kind == "random":
        return "random weights, made by the run"
    if source.kind != "hub":
        return str(source.place)
    folder = models.model_folder(models.load(config.model, source, store))  # holds what was downloaded to its headers
    return f"{config.model.path} at {source.identity['commit'][:SHORT]}, in {folder}"


def _compressor(config: Config, store: Store) -> str:
    compressor = config.compressor
    source = compressor.find(store)
    assert source is not None  # `needs` asks only where a checkpoint is named
    place = compressor.fetch(source, store)
    if source.kind != "hub":
        return str(place)
    return f"{compressor.origin} at {source.identity['commit'][:SHORT]}, in {place}"


def _corpus(name: str, config: Config) -> Callable[[Store], str]:
    from idp.corpora.corpus import named_corpus

    return lambda store: named_corpus(name, config.corpus, config.data_dir, store).place


def _tasks(config: Config) -> Iterator[Need]:
    from idp.plan.workload import task_options

    for options in task_options(config):
        yield from _tasks_of(options)


def _tasks_of(asked: Task) -> Iterator[Need]:
    from idp.tasks import catalog
    from idp.tasks.suites import expand
    from idp.tasks.tasks import find_tasks

    def take(name: str, store: Store) -> str:
        (source,) = find_tasks(replace(asked, names=[name], documents=1), store)
        if source.stand_in:
            raise UserError(f"dataset unavailable; {source.runs} would be substituted (not comparable)")
        return f"{source.source}, split {source.split} of {source.documents:,} documents"

    options = {key: value for key, value in asdict(asked).items() if key not in ("names", "documents")}
    for name in expand(asked.names, catalog.find_own(asked.include_path)):
        yield Need("task", name, [name, options], functools.partial(take, name))


if __name__ == "__main__":
    main()
