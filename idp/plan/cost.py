"""`python -m idp.bench.cost experiment=nine_tasks model=llama_7b`: what a study takes, before it is started.

GPU hours, disk and memory, of each of its runs and together; any overrides of `idp.run` go with it. Work that several
runs share is counted once, as the store does it once. How many tokens documents have is counted on the documents that
are here, or read from the record of a run (`record=`), which also says what its machine does in a second.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from idp.command import failures_in_one_line, help_text, parse, quiet_libraries, word
from idp.composed import configs as composed
from idp.config import Config
from idp.errors import UserError
from idp.finished import find_run
from idp.plan import assumed
from idp.plan.assumed import BITS, Assumed
from idp.plan.estimate import CARD_BYTES, CARD_OPERATIONS, DISK_BYTES, Speed
from idp.plan.machine import counted, machine_of
from idp.plan.workload import KINDS, LOAD, Machine, Workload, bank_lengths, task_options, tasks_of
from idp.store import Store
from idp.usage import explain
from idp.usage import options as choices

quiet_libraries()

TFLOPS = CARD_OPERATIONS / 1e12
GB, GIB = 1e9, 2**30
BESIDE = 4e9  # bytes: torch and the other libraries, a corpus
PASS = 2**30  # bytes of activations and logits of a pass of evaluation.batch_tokens tokens, about


@dataclass
class CostOptions:
    """The arguments that are not overrides of `idp.run`."""

    experiment: str | None = word("a file of conf/experiment, without .yaml: the runs of that study", default=None)
    record: str | None = word(
        "a run's folder, or its record: its documents' tokens and its machine's speed", default=None
    )
    parameters: str | None = word("weights of the model, such as 6.7e9, where its shape is not known", default=None)
    tflops: str | None = word(
        f"trillions of operations a second (default: those of the record's machine, else {TFLOPS:g})", default=None
    )


@dataclass
class RunCost:
    """Runs of a study that differ in their seed alone; hours and bytes are those that no run before them has had."""

    name: str
    size: Assumed
    runs: int = 0
    works: list[Workload] = field(default_factory=list)
    bytes: float = 0.0
    peak: float = 0.0  # bytes
    spared: float = 0.0  # bytes, with all that is spared where memory runs out


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(argv):
        print(
            help_text(
                CostOptions, "What a study would take, before it is started. All other arguments are idp.run's; -m:"
            )
        )
        print("  the overrides are those of a sweep, as with experiment=. budget= is paper unless it is said.")
        return
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with failures_in_one_line(explain=explain):
        arguments, overrides, sweep = _sorted(argv)
        options = parse(CostOptions, arguments)
        weights, tflops = (_number(options, name) for name in ("parameters", "tflops"))
        if options.experiment is not None and options.experiment not in (known := choices("experiment")):
            raise UserError(f"experiment={options.experiment}: there is none; choose one of {', '.join(sorted(known))}")
        found = list(_composed(options.experiment, overrides, sweep))
        store = Store(Path(found[0].store).expanduser())
        if options.record is not None:
            machine = machine_of(find_run(options.record), options.record)
        else:
            tokenizer, whose = assumed.tokenizer_of(found[0].model, store)
            machine = counted(found, tokenizer, store)
            machine.label += f", by the tokenizer of {whose}"
            tflops = tflops or TFLOPS
        print(report(found, machine, weights, tflops, store))


def report(
    configs: Sequence[Config], machine: Machine, weights: float | None, tflops: float | None, store: Store | None = None
) -> str:
    """The whole answer: assumptions, runs, and the work by kind.

    Args:
        configs: of all runs.
        machine: which knows the documents.
        weights: of the model, where its shape is not to be looked up.
        tflops: trillions of operations a second; None: what the record's machine did.
        store: where what was fetched is.
    """
    models = {config.model.name: config.model for config in configs}
    sizes = {name: assumed.of_config(model, weights, store) for name, model in models.items()}
    cells = list(cells_of(configs, machine, sizes))
    asked = {task for config in configs for options in task_options(config) for task in tasks_of(options)}
    lost = sorted(asked - machine.documents.keys())
    speeds = [
        f"the record: {machine.label}: "
        + (f"training {machine.training / 1e12:.3g}, " if machine.training else "")
        + f"evaluation {machine.evaluation / 1e12:.3g} trillion operations a second"
        if machine.evaluation
        else machine.label,
        f"hours: at {tflops:g} trillion operations a second; a decoding step reads all weights at"
        f" {CARD_BYTES / 1e12:g} TB/s, the store is read at {DISK_BYTES / 1e9:g} GB/s"
        if tflops
        else "hours: on the record's machine",
        "not counted: the gaps between a compressor's small kernels, attention's own products (a few percent), a"
        " choice by attention (a layer), and waiting",
        *([f"not counted, since no document of them is here: {', '.join(lost)}"] if lost else []),
        "",
    ]
    downloads = [f"from the hub: {name}, {size.bytes / GB:,.1f} GB" for name, size in sizes.items() if size.downloaded]
    needed = [f"{name} {math.ceil(_main_memory(configs, size) / GB)} GB" for name, size in sizes.items()]
    return "\n".join(
        [
            *speeds,
            by_run(cells, machine, tflops),
            "",
            f"main memory (hydra.launcher.mem_gb): {', '.join(needed)}",
            *downloads,
            *([] if not downloads else ["  (python -m idp.fetch fetches it with the corpora and documents)"]),
            "",
            table(cells, machine, tflops),
        ]
    )


def cells_of(configs: Sequence[Config], machine: Machine, sizes: dict[str, Assumed]) -> Iterator[RunCost]:
    """The runs of a study by what they are, in their order; of each what no run before it has done or kept."""
    seen: set[tuple[str, str]] = set()
    kept: set[str] = set()
    cells: dict[str, RunCost] = {}
    for config in configs:
        size = sizes[config.model.name]
        name = f"{size.name} {_name(config)}" if len(sizes) > 1 else _name(config)
        stored = assumed.stored(config, size)
        new = sum(count for key, count in stored.items() if key not in kept)
        kept |= set(stored)
        plain, spared = assumed.training_peaks(config, size) or (0, 0)
        least = size.bytes + PASS  # while it is measured
        cell = cells.setdefault(name, RunCost(name, size))
        cell.runs, cell.bytes = cell.runs + 1, cell.bytes + new
        cell.works += assumed.works_of(config, size, machine, seen)
        cell.peak, cell.spared = max(cell.peak, plain, least), max(cell.spared, spared, least)
    yield from cells.values()


def seconds_of(each: Workload, machine: Machine, parameters: float, tflops: float | None) -> float:
    """How long something takes."""
    evaluation = tflops * 1e12 if tflops else machine.evaluation
    training = evaluation if tflops else machine.training or evaluation
    assert evaluation is not None and training is not None  # of the record's machine, or given
    speed = Speed(evaluation, training, machine.label, card=bool(tflops))
    return speed.seconds(each, parameters, parameters * BITS / 8)


def by_run(cells: Sequence[RunCost], machine: Machine, tflops: float | None) -> str:
    """Hours, disk and memory of each cell as Markdown."""
    from tabulate import tabulate

    rows, hours, disk = [], 0.0, 0.0
    for cell in cells:
        cell_hours = sum(seconds_of(each, machine, cell.size.parameters, tflops) for each in cell.works) / 3600
        hours, disk = hours + cell_hours, disk + cell.bytes
        memory = [f"{cell.peak / GIB:,.1f}", f"{cell.spared / GIB:,.1f}"]
        rows.append([cell.name, cell.runs, f"{cell_hours:,.1f}", f"{cell.bytes / GB:,.2f}", *memory])
    most = [f"{max(getattr(cell, name) for cell in cells) / GIB:,.1f}" for name in ("peak", "spared")]
    rows.append(["all", sum(cell.runs for cell in cells), f"{hours:,.1f}", f"{disk / GB:,.2f}", *most])
    headers = ["run", "runs", "hours", "disk, GB", "memory, GiB", "at the least"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def table(cells: Sequence[RunCost], machine: Machine, tflops: float | None) -> str:
    """The work by kind as Markdown.

    Args:
        cells: with each thing once.
        machine: where the record's run ran.
        tflops: trillions of operations a second; None: what the machine did.
    """
    from tabulate import tabulate

    rows, total = [], 0.0
    for what in KINDS:
        works = [(each, cell.size.parameters) for cell in cells for each in cell.works if each.what == what]
        times = sum(each.opened if what == LOAD else 1 for each, _ in works)
        hours = sum(seconds_of(each, machine, weights, tflops) for each, weights in works) / 3600
        operations = sum(each.operations * each.tokens * weights for each, weights in works)
        tokens = sum(each.tokens for each, _ in works) / 1e6
        total += hours
        if times:
            rows.append([what, times, f"{tokens:,.1f}", f"{operations / 1e15:,.1f}", f"{hours:,.1f}"])
    rows.append(["sum", "", "", "", f"{total:,.1f}"])
    headers = ["work", "times", "million tokens", "10^15 operations", "hours"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _main_memory(configs: Sequence[Config], size: Assumed) -> float:
    """Bytes of main memory: the weights twice (as they are read or saved, or as a streamed teacher's), the calibration
    text's hidden states, and what the libraries take."""
    read = max(config.compressor.calibration.samples * config.compressor.calibration.length for config in configs)
    return 2 * size.bytes + read * size.hidden_size * BITS / 8 + BESIDE


def _composed(experiment: str | None, argv: list[str], sweep: bool) -> Iterator[Config]:
    given = [f"+experiment={experiment}"] if experiment is not None else []
    yield from composed([*given, *argv], sweep=sweep or experiment is not None, ahead=True)


def _sorted(argv: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """The arguments of this command, those of `idp.run`, and whether these are a sweep's."""
    names = set(CostOptions.__dataclass_fields__)
    argv = [
        f"experiment={word.removeprefix('+experiment=')}" if word.startswith("+experiment=") else word for word in argv
    ]
    arguments = [word for word in argv if word.partition("=")[0] in names]
    flags = {"-m", "--multirun"} & set(argv)
    overrides = [word for word in argv if word not in arguments and word not in flags]
    if strange := [word for word in overrides if "=" not in word or word.startswith("-")]:
        raise UserError(
            f"{strange[0]}: options are {', '.join(f'{name}=' for name in sorted(names))}, -m, and idp.run's"
        )
    if not any(word.startswith("budget=") for word in overrides):
        overrides.append("budget=paper")
    return arguments, overrides, bool(flags)


def _name(config: Config) -> str:
    parts = [config.compressor.label, config.recovery.kind]
    parts += [node.kind for node in config.recovery.parts.values() if len(bank_lengths(config.recovery)) > 1]
    return " ".join(parts)


def _number(options: CostOptions, name: str) -> float | None:
    given = getattr(options, name)
    if given is None:
        return None
    try:
        value = float(given)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise UserError(f"{name}={given}: give a number above 0, such as {'6.7e9' if name == 'parameters' else '100'}")
    return value


if __name__ == "__main__":
    main()
