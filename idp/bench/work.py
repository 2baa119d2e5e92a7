"""What a run computes, in tokens that go through a model, each thing with a key under which it is done once.

The stages are those of `idp.pipeline`. A test counts the tokens that pass a model's layers in real runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from idp.config import TEXT, WEIGHTS, Compressor, Config, Recovery, Trained, Training
from idp.store import digest

FORWARD, TRAINED = 2, 4  # operations per weight and token; nothing computes gradients of frozen weights
COMPRESS, CHECK, TRAIN, TEACH, JUDGE = "compress", "check calibration", "train", "teacher", "held-out"
HELDOUT, MEASURE, PERPLEXITY, FIDELITY, LATENCY = "fit", "evaluate", "perplexity", "fidelity", "latency"
LOAD = "load weights"
KINDS = (COMPRESS, CHECK, TRAIN, JUDGE, TEACH, HELDOUT, MEASURE, PERPLEXITY, FIDELITY, LATENCY, LOAD)
EACH = "each"  # `recovery.from` where a study takes the repairs of runs that need not be there yet


@dataclass(frozen=True)
class Work:
    """Something that the store makes once.

    `operations` are those per weight and token of `tokens`; `steps` decoding steps, each of which reads all weights;
    `opened` how often a model's weights are read from disk.
    """

    what: str
    key: str
    operations: int
    tokens: float
    steps: float = 0.0
    opened: int = 0


@dataclass
class Machine:
    """What is known of documents, and of a machine where a run has measured it."""

    tokens: dict[str, float]  # of a document of each task, those that go through a model: a mean
    documents: dict[str, int]  # in each task's split
    training: float | None = None  # operations a second
    evaluation: float | None = None
    said: str = ""  # which machine
    contexts: dict[str, float] = field(default_factory=dict)  # tokens of a document's context, where they are known
    steps: dict[str, float] = field(default_factory=dict)  # decoding steps of a document, its share of its batch's


@dataclass(frozen=True)
class Row:
    """One model that a run measures, as `idp.pipeline.Row`: a key, the tokens of its prompts, its selector."""

    name: str
    key: str
    lengths: tuple[int, ...] = ()
    selector: Any = None


def of_run(config: Config, machine: Machine) -> Iterator[Work]:
    """What one run computes, the dense and the compressed model's scores included.

    Args:
        config: the run's.
        machine: which knows the documents.
    """
    made = identity_of(config)
    yield from _of_compression(config, made)
    recovery, repair = config.recovery, repair_of(config)
    lengths = tuple(lengths_of(recovery))
    if repair is not None:
        yield from _of_training(recovery, repair)
        yield from _of_choice(recovery, repair, lengths)
    rows = _rows(config, made, repair, lengths)
    yield from _of_controls(config, machine, rows[-1])
    compares = config.evaluation.fidelity and len(rows) > 1 and rows[0].name == "dense"
    for row in rows:
        yield from _of_row(config, machine, row, compares)
    yield from _of_latency(config, rows)


def documents_of(config: Config, machine: Machine) -> dict[str, int]:
    """How many documents a run evaluates of each of its tasks, as far as the machine knows them."""
    from idp.tasks import catalog, suites

    mine = catalog.find_own(config.task.include_path) if config.task.include_path else catalog.NONE
    counts = {}
    for task in tasks_of(config):
        if task in machine.documents:
            own = suites.value_of(config.task.documents_of, task, mine)
            limits = [machine.documents[task], *(limit for limit in (config.task.documents, own) if limit is not None)]
            counts[task] = min(limits)
    return counts


def uncounted(config: Config, machine: Machine) -> list[str]:
    """The tasks of a run of which no document is known."""
    return [task for task in tasks_of(config) if task not in machine.documents]


def trainings(recovery: Recovery) -> Iterator[tuple[Trained, Training, list[int], int]]:
    """Each training of a recovery: whose it is, its options, the prompts' lengths, and how often it is done."""
    while recovery is not None:
        if recovery.trains:
            tried = recovery.search
            if tried.learning_rates or tried.inits:
                short = replace(recovery.training, steps=tried.steps)
                short.evaluate_every = min(short.evaluate_every, tried.steps)
                count = max(len(tried.learning_rates), 1) * max(len(tried.inits), 1)
                yield recovery, short, lengths_of(recovery.candidate())[:1], count
            yield recovery, recovery.training, lengths_of(recovery), 1
        recovery = recovery.beneath


def _of_compression(config: Config, made: str) -> Iterator[Work]:
    from idp.compress import recipe, stage
    from idp.compress.oneshot import BATCH_TOKENS
    from idp.compress.reconstruction import TOKENS

    if not stage.works(config.compressor):
        # Its weights are read and measured: the dense model's, or those of a checkpoint of others.
        yield Work(LOAD, made, 0, 0, opened=1)
        return
    samples, length = config.compressor.calibration.samples, config.compressor.calibration.length
    looked = min(samples, max(1, TOKENS // length)) * length  # for the error of each layer's outputs
    if recipe.needs_data(config.compressor):
        # Before and after each layer is compressed.
        yield Work(COMPRESS, made, config.compressor.operations, 2 * samples * length)
        # The first batch plainly, as calibration calls the layers, and twice more to hold the one to the other.
        looked += 4 * min(samples, max(1, BATCH_TOKENS // length)) * length
    else:
        yield Work(COMPRESS, made, 0, 0)
    yield Work(CHECK, made, FORWARD, looked)
    yield Work(LOAD, made, 0, 0, opened=2)


def _of_training(recovery: Recovery, repair: str) -> Iterator[Work]:
    if WEIGHTS in recovery.needs:
        yield Work(LOAD, repair, 0, 0, opened=1)
    for number, (of, training, lengths, count) in enumerate(trainings(recovery)):
        key = digest([repair, of.kind, number])
        prompts = max(len(lengths), 1)
        rows, width, batch = training.heldout_sequences, training.sequence_length, training.batch_size
        passes = math.ceil(batch / (training.micro_batch_size or batch))
        step = batch * width * prompts + passes * sum(lengths)
        operations = TRAINED + (FORWARD if training.checkpointing else 0)
        yield Work(TRAIN, key, operations, count * training.steps * step)
        evaluations = 1 + math.ceil(training.steps / training.evaluate_every)
        judged = of.judged(prompts)
        batches = math.ceil(rows / (training.micro_batch_size or batch))
        heldout = evaluations * (judged * rows * width + batches * sum(lengths))
        extra = of.also_read(prompts, training) * width
        yield Work(JUDGE, key, FORWARD, count * (heldout + extra))
        if training.objective == "distill":
            taught = training.steps * batch * width * prompts + evaluations * judged * rows * width
            yield Work(TEACH, key, FORWARD, count * taught)
            yield Work(LOAD, f"{key} teacher", 0, 0, opened=1)


def _of_choice(recovery: Recovery, repair: str, lengths: tuple[int, ...]) -> Iterator[Work]:
    choice = recovery.choice
    if len(lengths) < 2 or choice is None or not (choice.controls or TEXT in choice.selector.needs):
        return
    fit = choice.fit
    yield Work(HELDOUT, repair, FORWARD, len(lengths) * fit.blocks * fit.tokens + sum(lengths))
    yield Work(LOAD, f"{repair} fit", 0, 0, opened=1)


def _of_controls(config: Config, machine: Machine, row: Row) -> Iterator[Work]:
    """Each prompt of a bank alone."""
    if len(row.lengths) < 2 or row.selector is None or not (config.recovery.choice.controls or row.selector.peeks):
        return
    for number in range(len(row.lengths)):
        alone = Row(f"prompt {number}", digest([row.key.split()[0], number]), row.lengths)
        yield from _of_row(config, machine, alone, compares=False)


def _of_row(config: Config, machine: Machine, row: Row, compares: bool) -> Iterator[Work]:
    """One model on all tasks and corpora."""
    if row.selector is not None and row.selector.peeks:
        return  # read off from the prompts alone
    chosen = (
        row.selector is not None and row.selector.constant and config.recovery.choice.controls
    )  # one of the prompts alone
    counts = documents_of(config, machine)
    copies = len(row.lengths) * row.selector.passes if row.selector is not None else 0
    contexts = {task: machine.contexts.get(task, machine.tokens[task]) for task in counts}
    if not chosen:
        tokens = sum(counts[task] * (machine.tokens[task] + copies * contexts[task]) for task in counts)
        steps = sum(counts[task] * machine.steps.get(task, 0.0) for task in counts)
        yield Work(MEASURE, digest([row.key, counts, config.task.fewshot]), FORWARD, tokens + sum(row.lengths), steps)
    window, asked = config.evaluation.perplexity_window, config.evaluation.perplexity_tokens
    for corpus in config.evaluation.perplexity:
        key = digest([row.key, _corpus(config, corpus), window, asked])
        windows = asked // window if asked else 0
        from idp.evaluate.scorer import ROLLING_READS

        text = windows * (window - 1 + copies * min(ROLLING_READS, window))
        if compares:  # the pass that keeps or compares the predictions gives the perplexity as well
            yield Work(PERPLEXITY, f"{key} compared", FORWARD, text)
            yield Work(PERPLEXITY, key, FORWARD, 0)
        else:
            yield Work(PERPLEXITY, key, FORWARD, 0 if chosen else text)
    if compares:
        yield Work(FIDELITY, digest([row.key, counts]), FORWARD, _compared(counts, contexts))
    yield Work(LOAD, f"{row.key} measured", 0, 0, opened=1)


def _compared(counts: dict[str, int], contexts: dict[str, float]) -> float:
    """Tokens of the contexts at whose ends two models are compared."""
    from idp.evaluate.contexts import DOCUMENTS, FEW, SHARE, TOKENS

    found = 0.0
    for task, count in counts.items():
        few = min(DOCUMENTS, max(count // SHARE, FEW), count)
        if contexts[task]:
            found += contexts[task] * min(few, max(1, TOKENS // contexts[task]))
    return found


def _of_latency(config: Config, rows: list[Row]) -> Iterator[Work]:
    latency, own = config.latency, rows[-1]
    if not latency.enabled:
        return
    repaired = own.name == "repaired"
    adapted = config.recovery.adapts
    variants = 1 + (len(rows) > 1 and rows[0].key != own.key)
    if repaired:
        variants += 1 + (latency.merged if adapted else len(own.lengths) > 1)
    rounds = variants * (latency.warmup + latency.rounds) * len(latency.input_tokens)
    read = sum(latency.input_tokens) / len(latency.input_tokens) + latency.new_tokens
    key = digest([row.key for row in rows] + [asdict(latency)])
    steps = rounds * len(latency.batch_sizes) * latency.new_tokens
    yield Work(LATENCY, key, FORWARD, rounds * sum(latency.batch_sizes) * read, steps)
    yield Work(LOAD, key, 0, 0, opened=1)


def _rows(config: Config, made: str, repair: str | None, lengths: tuple[int, ...]) -> list[Row]:
    """As `idp.pipeline.compared`."""
    dense = digest([asdict(config.model), "dense"])
    rows = []
    if config.baselines and made != dense:
        rows.append(Row("dense", dense))
    if config.baselines or repair is None:
        rows.append(Row("dense" if made == dense else "compressed", made))
    if repair is not None:
        choice = config.recovery.choice if len(lengths) > 1 else None
        selector = choice.selector if choice is not None else None
        key = f"{repair} {digest(asdict(selector))}" if selector is not None else repair
        rows.append(Row("repaired", key, lengths, selector))
    return rows


def repair_of(config: Config) -> str | None:
    """What a run's repair is known by; None where there is none."""
    recovery = config.recovery
    if not recovery.repairs:
        return None
    seed = config.seed if recovery.trains else None
    return digest([identity_of(config), _learned(recovery), seed, _text(config)])


def tasks_of(config: Config) -> list[str]:
    """The single tasks of a run."""
    from idp.tasks import catalog
    from idp.tasks.suites import expand

    known = {task for tasks in catalog.aliases().values() for task in tasks}
    if set(config.task.names) <= known:  # lm-eval's definitions need not be looked through
        return list(dict.fromkeys(config.task.names))
    return expand(config.task.names, catalog.find_own(config.task.include_path))


def lengths_of(recovery: Recovery) -> list[int]:
    """Tokens of each prompt; of a written one, and of those of `EACH`, they are not known here."""
    if getattr(recovery, "from", None) == EACH:
        return []
    try:
        return list(recovery.prompt_lengths())
    except TypeError:  # a written prompt wants a tokenizer
        return []


def _text(config: Config) -> Any:
    return [config.corpus.name, config.corpus.path, config.corpus.documents]


def _corpus(config: Config, name: str) -> Any:
    return _text(config) if name in ("corpus", config.corpus.name) else name


def _learned(recovery: Recovery) -> dict[str, Any]:
    """What decides a repair: all options but those of choosing among its prompts and of storing them."""
    return recovery.options() | {"bos": getattr(recovery, "bos", None)}


def identity_of(config: Config) -> str:
    """What a run's compressed model is known by: the dense one's name where nothing is compressed."""
    compressor: Compressor = config.compressor
    model = asdict(config.model)
    if not compressor.needs:
        return digest([model, "dense"])
    return digest([model, json.loads(json.dumps(asdict(compressor)))])
