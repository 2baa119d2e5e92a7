"""`python -m idp.bench.cost record=<run folder> experiment=nine_tasks`: what a study would take on a larger model.

The record is that of a run on the machine in question, of any model: it says how many tokens the tasks' documents have
and how many operations a second the machine did. The study's runs are composed as they would be run; work that several
of them share is counted once, as the store does it once.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from idp.command import failures_in_one_line, help_text, parse, quiet_libraries, word
from idp.config import Compressor, Config, Recovery, conf_dir
from idp.errors import UserError
from idp.finished import Finished, find
from idp.store import digest
from idp.usage import options as choices

quiet_libraries()

FORWARD, TRAINED = 2, 4  # operations per weight and token; nothing computes gradients of frozen weights
CALIBRATION = 3 * FORWARD  # before and after a layer is compressed, and about as much again for its second moments
HELDOUT = "fit"
COMPRESS, TRAIN, MEASURE = "compress", "train", "evaluate"


@dataclass
class Options:
    """The `key=value` words."""

    record: str = word("a run's folder, or its record; it has trained and measured something")
    experiment: str = word("a file of conf/experiment, without .yaml")
    parameters: str = word("weights of the larger model, such as 6.7e9")
    budget: str = word("a file of conf/budget (default: paper)", default="paper")
    tflops: str | None = word("trillions of operations a second, if the record's machine is another", default=None)


@dataclass(frozen=True)
class Work:
    """Something that the store makes once: `operations` are those per weight and token, `tokens` None where unknown."""

    what: str
    key: str
    operations: int
    tokens: float


@dataclass
class Machine:
    """What a run's record says of where it ran: documents' tokens, and operations a second."""

    tokens: dict[str, float]  # of a document of each task, a mean
    documents: dict[str, int]  # in each task's split
    training: float | None
    evaluation: float
    said: str


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    words = list(sys.argv[1:] if words is None else words)
    if {"-h", "--help"} & set(words):
        print(help_text(Options, "What a study would take on a larger model, from what a run took."))
        return
    with failures_in_one_line():
        options = parse(Options, words)
        weights, tflops = (_number(options, name) for name in ("parameters", "tflops"))
        for group in ("experiment", "budget"):
            known = choices(group)
            if getattr(options, group) not in known:
                raise UserError(
                    f"{group}={getattr(options, group)}: there is none; choose one of {', '.join(sorted(known))}"
                )
        machine = machine_of(find(options.record), options.record)
        works = list(of_experiment(options.experiment, options.budget, machine))
        print(table(works, machine, weights, tflops))


def machine_of(run: Finished, place: str) -> Machine:
    """What a run's record and its samples say of the documents and of the machine.

    Args:
        run: it has measured tasks.
        place: its folder or its record.

    Raises:
        UserError: its samples are gone.
    """
    from pyarrow import parquet
    from transformers import AutoTokenizer

    from idp.models import model_folder
    from idp.track.record import SAMPLES

    about = run.record["idp"]
    path = Path(place).expanduser()
    file = (path if path.is_dir() else path.parent) / SAMPLES
    if not file.is_file() or not about["data"]:
        raise UserError(f"{place}: its documents are gone; name a run that has measured the tasks")
    tokenizer = AutoTokenizer.from_pretrained(model_folder(run.product("load")))
    lengths: dict[str, list[int]] = {}
    columns = ["asked_for", "model", "context", "choices", "generation"]
    for row in parquet.read_table(file, columns=columns).to_pylist():
        if row["model"] == about["row"]:
            texts = [row["context"], *(row["choices"] or []), row["generation"] or ""]
            lengths.setdefault(row["asked_for"], []).append(sum(len(tokenizer.encode(text)) for text in texts if text))
    tokens = {task: sum(found) / len(found) for task, found in lengths.items()}
    measured = sum(tokens[task] * about["data"][task]["documents"] for task in tokens)
    measured += sum(found["tokens"] for found in about["perplexity_details"].values())
    weights = about["parameters"]["model"]
    seconds = {stage: (about["stages"].get(stage) or {}).get("seconds") for stage in ("recover", "measure")}
    training, budget = None, about["config"]["recovery"].get("training")
    if about["training"] and budget and seconds["recover"]:
        training = _trained_tokens(budget) * len(about["training"]) * weights * TRAINED / seconds["recover"]
    environment = about["environment"]
    return Machine(
        tokens,
        {task: about["data"][task]["documents_in_split"] for task in tokens},
        training,
        measured * weights * FORWARD / seconds["measure"],
        f"{run.model.name} on {environment['device']}, {environment['threads']} threads",
    )


def of_experiment(experiment: str, budget: str, machine: Machine) -> Iterator[Work]:
    """All that an experiment's runs compute, each thing once.

    Args:
        experiment: its name.
        budget: the name of the budget.
        machine: which knows the documents.
    """
    seen = set()
    for config in configs(experiment, budget):
        for work in of_run(config, machine):
            if (work.what, work.key) not in seen:
                seen.add((work.what, work.key))
                yield work


def configs(experiment: str, budget: str) -> Iterator[Config]:
    """The checked config of each run of an experiment."""
    import hydra
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from idp.checks import check
    from idp.kinds import register

    register()
    GlobalHydra.instance().clear()
    grid = OmegaConf.load(conf_dir() / "experiment" / f"{experiment}.yaml").hydra.sweeper.params
    with hydra.initialize_config_dir(str(conf_dir().absolute()), version_base="1.3"):
        parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in grid.items()])
        for cell in itertools.chain(*BasicSweeper.split_arguments(parsed, None)):
            given = ["recovery.from=each"] if experiment == "transfer" else []
            yield check(hydra.compose("config", [f"+experiment={experiment}", f"budget={budget}", *cell, *given]))


def of_run(config: Config, machine: Machine) -> Iterator[Work]:
    """What one run computes, the dense and the compressed model's scores included.

    Args:
        config: the run's.
        machine: which knows the documents.
    """
    tasks = sum(
        tokens * min(machine.documents[task], config.task.documents or config.budget.documents or math.inf)
        for task, tokens in machine.tokens.items()
        if task in config.task.names
    )
    made = _identity(config.compressor)
    yield Work(MEASURE, "dense", FORWARD, tasks)
    if config.compressor.sparsity.method or config.compressor.quantization.method:
        calibration = config.compressor.calibration
        yield Work(COMPRESS, made, CALIBRATION, calibration.samples * calibration.length)
        yield Work(MEASURE, made, FORWARD, tasks)
    recovery = config.recovery
    if not recovery.repairs:
        return
    repair = digest([made, _learned(recovery), config.seed if recovery.trains else None, config.corpus.name])
    prompts = len(recovery.prompt_lengths()) if hasattr(recovery, "bank") else 1
    while recovery is not None:
        if recovery.trains:
            count = prompts if hasattr(recovery, "bank") else 1
            yield Work(
                TRAIN, digest([repair, recovery.kind]), TRAINED, count * _trained_tokens(asdict(recovery.training))
            )
        recovery = recovery.beneath
    selector = getattr(config.recovery, "selector", None)
    if prompts > 1 and selector is not None:
        if config.recovery.controls or selector.fits:
            fit = config.recovery.fit
            yield Work(HELDOUT, repair, FORWARD, prompts * fit.blocks * fit.tokens)
        if config.recovery.controls or selector.peeks:
            for prompt in range(prompts):
                yield Work(MEASURE, digest([repair, prompt]), FORWARD, tasks)
    if selector is None or not selector.peeks:
        yield Work(MEASURE, digest([repair, selector and asdict(selector)]), FORWARD, tasks)


def table(works: Sequence[Work], machine: Machine, weights: float, tflops: float | None) -> str:
    """The work by kind as Markdown, and what the record measured.

    Args:
        works: each thing once.
        machine: where the record's run ran.
        weights: of the larger model.
        tflops: trillions of operations a second; None: what the machine did.
    """
    from tabulate import tabulate

    speeds = {TRAIN: machine.training or machine.evaluation}
    rows, total = [], 0.0
    for what in (COMPRESS, TRAIN, HELDOUT, MEASURE):
        own = [work for work in works if work.what == what]
        operations = sum(work.operations * work.tokens for work in own) * weights
        speed = tflops * 1e12 if tflops else speeds.get(what, machine.evaluation)
        hours = operations / speed / 3600
        total += hours
        tokens = sum(work.tokens for work in own) / 1e6
        rows.append([what, len(own), f"{tokens:,.1f}", f"{operations / 1e15:,.1f}", f"{hours:,.1f}"])
    rows.append(["sum", "", "", "", f"{total:,.1f}"])
    training = f"training {machine.training / 1e12:.3g}, " if machine.training else ""
    return "\n".join(
        [
            f"the record: {machine.said}: {training}evaluation {machine.evaluation / 1e12:.3g} trillion operations a"
            " second",
            f"hours: at {tflops:g} trillion operations a second" if tflops else "hours: on the record's machine",
            "not counted: perplexity, latency, the compressors' own algebra, loading, and waiting",
            "",
            tabulate(
                rows,
                headers=["work", "times", "million tokens", "10^15 operations", "hours"],
                tablefmt="github",
                disable_numparse=True,
            ),
        ]
    )


def _trained_tokens(training: dict[str, Any]) -> float:
    """Tokens that one training reads; those of held-out text, whose pass is forward only, count for half."""
    steps, length = training["steps"], training["sequence_length"]
    heldout = (1 + steps // training["evaluate_every"]) * training["heldout_sequences"] * length
    return steps * training["batch_size"] * length + heldout * FORWARD / TRAINED


def _learned(recovery: Recovery) -> dict[str, Any]:
    """What decides a repair: all options but those of choosing among its prompts and of storing them."""
    from idp.recover.stage import CHOICE

    return {name: value for name, value in asdict(recovery).items() if name not in CHOICE}


def _identity(compressor: Compressor) -> str:
    if not (compressor.sparsity.method or compressor.quantization.method):
        return "dense"
    return digest(json.loads(json.dumps(asdict(compressor))))


def _number(options: Options, name: str) -> float | None:
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
