"""What making a product computes, in tokens that go through a model. A test counts those that pass a model's layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from idp.config import (
    CALIBRATION,
    DENSE,
    WEIGHTS,
    Calibration,
    Compressor,
    Config,
    Evaluation,
    Latency,
    Recovery,
    Task,
    Trained,
    Training,
)
from idp.store import Identity, digest

if TYPE_CHECKING:
    from idp.rows import Row

FORWARD, TRAINED = 2, 4  # operations per weight and token; nothing computes gradients of frozen weights
COMPRESS, CHECK, TRAIN, TEACH, JUDGE = "compress", "check calibration", "train", "teacher", "held-out"
HELDOUT, MEASURE, PERPLEXITY, FIDELITY, LATENCY = "fit", "evaluate", "perplexity", "fidelity", "latency"
LOAD, GUARD, GENERATE, CLOSED_FORM = "load weights", "guard", "generate", "closed form"
KINDS = (
    COMPRESS,
    CHECK,
    CLOSED_FORM,
    GENERATE,
    TRAIN,
    JUDGE,
    TEACH,
    HELDOUT,
    MEASURE,
    PERPLEXITY,
    FIDELITY,
    LATENCY,
    LOAD,
)


@dataclass(frozen=True)
class Workload:
    """Something that is computed once, for whichever product: what has the same `what` and `key` is the same work.

    `operations` are those per weight and token of `tokens`; `steps` passes one after the other, each of which reads all
    weights: those of decoding and of training;
    `opened` how often a model's weights are read from disk; `part_of` names the model whose scores it is a part of.
    """

    what: str
    key: str
    operations: float
    tokens: float
    steps: float = 0.0
    opened: int = 0
    part_of: str = ""


@dataclass(frozen=True)
class DocumentTokens:
    """A document of a task as a mean: tokens that go through a model, those of its context, decoding steps."""

    tokens: float
    context: float
    steps: float


@dataclass
class Machine:
    """What is known of documents, and of a machine where a run has measured it."""

    tokens: dict[str, float]  # of a document of each task, those that go through a model: a mean
    documents: dict[str, int]  # in each task's split
    training: float | None = None  # operations a second
    evaluation: float | None = None
    label: str = ""  # which machine
    contexts: dict[str, float] = field(default_factory=dict)  # tokens of a document's context, where they are known
    steps: dict[str, float] = field(default_factory=dict)  # decoding steps of a document, its share of its batch's

    def document(self, task: str) -> DocumentTokens:
        """A document of a task; all of it counts as its context where that is not known."""
        tokens = self.tokens[task]
        return DocumentTokens(tokens, self.contexts.get(task, tokens), self.steps.get(task, 0.0))


@dataclass(frozen=True)
class PromptReader:
    """How a model that is measured reads text: behind which prompts, and how one is chosen.

    `lengths` are the prompts' tokens; `copies` how often a context is read before one of them is chosen; `known`:
    its scores are those of a prompt measured by itself, under other keys or the same; `composed`: they are those of
    its prompts measured by themselves, of which one is chosen for each input.
    """

    key: str
    lengths: tuple[int, ...]
    copies: int
    known: bool
    composed: bool = False

    @property
    def opening(self) -> Workload:
        """The model's weights, read once for all that is measured of it."""
        return Workload(LOAD, f"{self.key} measured", 0, 0, opened=1)

    @property
    def prefix(self) -> Workload:
        """Its prompts' own pass, whose keys and values all documents share."""
        return Workload(MEASURE, f"{self.key} prompts", FORWARD, sum(self.lengths), part_of=self.key)


def trainings(recovery: Recovery) -> Iterator[tuple[Trained, Training, list[int], int]]:
    """Each training of a recovery: whose it is, its options, the prompts' lengths, and how often it is done."""
    made: Recovery | None = recovery
    while made is not None:
        yield from own_trainings(made)
        made = made.beneath


def own_trainings(recovery: Recovery) -> Iterator[tuple[Trained, Training, list[int], int]]:
    """As `trainings`, without those of what is made beneath it."""
    if not recovery.trains or not isinstance(recovery, Trained):
        return
    tried = recovery.search
    if tried.learning_rates or tried.inits:
        short = replace(recovery.training, steps=tried.steps)
        short.evaluate_every = min(short.evaluate_every, tried.steps)
        count = max(len(tried.learning_rates), 1) * max(len(tried.inits), 1)
        yield recovery, short, lengths_of(recovery.candidate())[:1], count
    yield recovery, recovery.training, lengths_of(recovery), 1


def of_compression(compressor: Compressor | None, key: str, by_others: bool) -> Iterator[Workload]:
    """The compress stage's product; `by_others`: it is a checkpoint that exists; no compressor: the dense model."""
    from idp.compress import recipe, stage
    from idp.compress.activations import BATCH_TOKENS
    from idp.compress.reconstruction import TOKENS

    if compressor is None or by_others or not stage.works(compressor):
        yield Workload(LOAD, key, 0, 0, opened=1)  # its weights are read and measured
        return
    samples, length = compressor.calibration.samples, compressor.calibration.length
    looked = min(samples, max(1, TOKENS // length)) * length  # for the error of each layer's outputs
    if recipe.needs_data(compressor):
        # Before and after each layer is compressed.
        yield Workload(COMPRESS, key, compressor.operations, 2 * samples * length)
        # The first batch plainly, as calibration calls the layers, and twice more to hold the one to the other.
        looked += 4 * min(samples, max(1, BATCH_TOKENS // length)) * length
    else:
        yield Workload(COMPRESS, key, 0, 0)
    yield Workload(CHECK, key, FORWARD, looked)
    yield Workload(LOAD, key, 0, 0, opened=2)


def of_repair(recovery: Recovery, key: str, calibration: Calibration) -> Iterator[Workload]:
    """A repair's product, without what is made beneath it; `calibration` is the compressor's."""
    if WEIGHTS in recovery.needs:
        yield Workload(LOAD, key, 0, 0, opened=1)
    yield from _of_closed_form(recovery, key, calibration)
    for number, (of, training, lengths, count) in enumerate(own_trainings(recovery)):
        name = f"{key} {number}"
        prompts = max(len(lengths), 1)
        rows, width, batch = training.heldout_sequences, training.sequence_length, training.batch_size
        passes = math.ceil(batch / (training.micro_batch_size or batch))
        step = batch * width * prompts + passes * sum(lengths)
        operations = TRAINED + (FORWARD if training.checkpointing else 0)
        launched = 3 * training.steps * prompts * passes  # forward, and twice backward
        yield Workload(TRAIN, name, operations, count * training.steps * step, count * launched)
        evaluations = 1 + math.ceil(training.steps / training.evaluate_every)
        judged = of.judged(prompts)
        batches = math.ceil(rows / (training.micro_batch_size or batch))
        heldout = evaluations * (judged * rows * width + batches * sum(lengths))
        extra = of.also_read(prompts, training) * width
        yield Workload(JUDGE, name, FORWARD, count * (heldout + extra))
        if training.objective == "distill" and not training.cached:
            taught = training.steps * batch * width * prompts + evaluations * judged * rows * width
            yield Workload(TEACH, name, FORWARD, count * taught)
            yield Workload(LOAD, f"{name} teacher", 0, 0, opened=1)


def _of_closed_form(recovery: Recovery, key: str, calibration: Calibration) -> Iterator[Workload]:
    """What is computed from the layers' inputs on calibration text, and the dense model where no training opens it."""
    from idp.compress.activations import BATCH_TOKENS

    if CALIBRATION in recovery.needs:
        read = recovery.calibration(calibration)
        # The first batch plainly, as the layers are called, and once more to hold the one to the other.
        held = 3 * min(read.samples, max(1, BATCH_TOKENS // read.length)) * read.length
        yield Workload(CLOSED_FORM, key, recovery.operations, read.samples * read.length + held)
    taught = recovery.trained is not None and recovery.trained.training.objective == "distill"
    if DENSE in recovery.needs and not taught:
        yield Workload(LOAD, f"{key} dense", 0, 0, opened=1)


def of_generated(text: Identity, tokens: int) -> Iterator[Workload]:
    """Text that the dense model writes: each token is read once."""
    asked = text.config["generated"]
    yield Workload(GENERATE, text.key, FORWARD, tokens, tokens / asked["rows"])
    yield Workload(LOAD, text.key, 0, 0, opened=1)


def of_taught(kept: Identity) -> Iterator[Workload]:
    """What is kept of the dense model's predictions for a part of a corpus (`idp.recover.cached`)."""
    yield Workload(TEACH, kept.key, FORWARD, kept.config["blocks"] * kept.config["length"])
    yield Workload(LOAD, f"{kept.parent} teacher", 0, 0, opened=1)


def of_heldout(recovery: Recovery, key: str, lengths: list[int]) -> Iterator[Workload]:
    """Each prompt's loss on held-out text."""
    assert recovery.choice is not None  # asked of recoveries that choose
    fit = recovery.choice.fit
    yield Workload(HELDOUT, key, FORWARD, len(lengths) * fit.blocks * fit.tokens + sum(lengths))
    yield Workload(LOAD, f"{key} fit", 0, 0, opened=1)


def of_router(key: str) -> Iterator[Workload]:
    """A router's fit, beside the scores that it learns from; it reads embeddings of the model that `of_heldout` opens,
    where `key` is that of held-out losses which are made in the same run."""
    yield Workload(LOAD, f"{key} fit", 0, 0, opened=1)


def reader_of(row: Row, lengths: list[int], controls: bool) -> PromptReader:
    """How a row of a run reads; `lengths` are those of its repair's prompts, `controls` whether each is measured."""
    if row.repair is None:
        return PromptReader(row.key, (), 0, False)
    selector = row.selection.options if row.selection is not None else None
    if selector is None:
        return PromptReader(row.key, tuple(lengths), 0, False)
    name = f"{row.key} {digest(selector.identity)}"
    if row.uses_labels:
        return PromptReader(name, (), 0, True)
    known = selector.constant and controls
    return PromptReader(name, tuple(lengths), len(lengths) * selector.passes, known, controls and row.composed)


def of_task(reader: PromptReader, key: str, documents: int, task: str, machine: Machine) -> Iterator[Workload]:
    """A model's scores on so many documents of a task."""
    if not reader.known:
        each = machine.document(task)
        scored, steps = (0, 0.0) if reader.composed else (each.tokens, documents * each.steps)
        tokens = documents * (scored + reader.copies * each.context)
        yield Workload(MEASURE, key, FORWARD, tokens, steps, part_of=reader.key)
        yield reader.prefix
        yield reader.opening


def of_contexts(reader: PromptReader, key: str, documents: int, task: str, machine: Machine) -> Iterator[Workload]:
    """The contexts of a task at whose ends two models are compared."""
    from idp.evaluate.contexts import DOCUMENTS, FEW, SHARE, TOKENS

    few, context = min(DOCUMENTS, max(documents // SHARE, FEW), documents), machine.document(task).context
    read = context * (1 + reader.copies)
    tokens = read * min(few, max(1, TOKENS // context)) if context else 0.0
    yield Workload(FIDELITY, key, FORWARD, tokens, part_of=reader.key)
    yield reader.opening


def of_corpus(reader: PromptReader, key: str, evaluation: Evaluation, compared: bool = False) -> Iterator[Workload]:
    """A model's perplexity; with `compared` the pass that compares its predictions, which gives that as well."""
    from idp.evaluate.scorer import ROLLING_READS

    window, asked = evaluation.perplexity_window, evaluation.perplexity_tokens
    windows = asked // window if asked else 0
    scored = 0 if reader.composed and not compared else window - 1
    text = windows * (scored + reader.copies * min(ROLLING_READS, window))
    read = compared or not reader.known
    yield Workload(PERPLEXITY, key, FORWARD, text if read else 0, part_of=reader.key)
    if read:
        yield reader.opening


def of_latency(latency: Latency, key: str, rows: list[Row], lengths: list[int]) -> Iterator[Workload]:
    """The rows of a run side by side."""
    final = rows[-1]
    variants = 1 + (len(rows) > 1 and rows[0].key != final.key)
    if final.repair is not None and final.recovery is not None:
        variants += 1 + (latency.merged if final.recovery.adapts else len(lengths) > 1)
    rounds = variants * (latency.warmup + latency.rounds) * len(latency.input_tokens)
    read = sum(latency.input_tokens) / len(latency.input_tokens) + latency.new_tokens
    steps = rounds * len(latency.batch_sizes) * latency.new_tokens
    yield Workload(LATENCY, key, FORWARD, rounds * sum(latency.batch_sizes) * read, steps)
    yield Workload(LOAD, key, 0, 0, opened=1)


def lengths_of(recovery: Recovery, tokenizer: Any = None) -> list[int]:
    """Tokens of each prompt; none of a written one where there is no tokenizer."""
    try:
        return list(recovery.prompt_lengths(tokenizer))
    except TypeError:
        if tokenizer is not None:
            raise
        return []


def bank_lengths(recovery: Recovery, tokenizer: Any = None) -> list[int]:
    """Tokens of each prompt of the bank, 0 of the empty one."""
    return lengths_of(recovery, tokenizer) + [0] * recovery.holds_empty


def task_options(config: Config) -> list[Task]:
    """The tasks of a run with their options: those that it evaluates, and those that a router learns from."""
    from idp.recover.stage import router_tasks

    of_router = router_tasks(config.recovery, config.task)
    return [config.task, of_router] if of_router is not None else [config.task]


def tasks_of(options: Task) -> list[str]:
    """The single tasks that are asked for."""
    from idp.tasks import catalog
    from idp.tasks.suites import expand

    known = {task for tasks in catalog.aliases().values() for task in tasks}
    if set(options.names) <= known:  # lm-eval's definitions need not be looked through
        return list(dict.fromkeys(options.names))
    return expand(options.names, catalog.find_own(options.include_path))
