"""Resolved inputs: all that a run needs from outside, found before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from idp import models
from idp.compress import stage as compressing
from idp.config import Config, Model, values_of
from idp.errors import UserError
from idp.recover import stage as recovering
from idp.recover.context import CalibrationText
from idp.store import Store, digest

if TYPE_CHECKING:
    from idp.corpora.corpus import Text
    from idp.recover.given import Given
    from idp.tasks.tasks import TaskSource

Found = TypeVar("Found")


@dataclass
class ResolvedInputs:
    """Resolved inputs: where model, documents and texts are, each known by its content."""

    source: models.ModelSource
    tasks: list[TaskSource]
    corpus: Text  # for training, and for comparing prompts
    calibration: Text
    external: models.ModelSource | None  # a checkpoint that others compressed
    perplexity: dict[str, Text]  # by name
    given: Given  # what the recovery takes from elsewhere
    router_tasks: list[TaskSource] = field(default_factory=list)  # on whose outcomes a selector is fitted

    @property
    def texts(self) -> list[Text]:
        """All that the run reads."""
        return [self.corpus, self.calibration, *self.perplexity.values()]

    def calibration_of(self, config: Config) -> CalibrationText:
        """The calibration text as recoveries read it."""
        return CalibrationText(config.compressor.calibration, self.calibration)


@dataclass(frozen=True)
class Shape:
    """The dense model but for its weights: `folder` has its config and tokenizer, `empty` its layers on `meta`."""

    folder: Path
    empty: models.LoadedModel


@dataclass
class Known:
    """What was found for one run of a sweep and serves the others: a file is read, and hashed, once."""

    found: dict[str, Any] = field(default_factory=dict)

    def once(self, what: Any, find: Callable[[], Found]) -> Found:
        """What `find` gives, asked once for all that `what` (JSON) is the same for."""
        key = digest(what)
        if key not in self.found:
            self.found[key] = find()
        return self.found[key]


def resolve(config: Config, store: Store, known: Known | None = None) -> tuple[Config, ResolvedInputs]:
    """Finds model, documents and texts, and checks that they go together; computes nothing.

    What the hub has of them is fetched once for a store.

    Args:
        config: the run's.
        store: where what was fetched is kept.
        known: what was found for other runs.

    Returns:
        the config, with what follows from files that its recovery names; and the inputs.

    Raises:
        UserError: something is missing, unreadable, too small, or evaluates on what it trains on.
    """
    from idp.corpora.corpus import DenseModel, named_corpus, refuse_evaluated
    from idp.tasks.tasks import find_tasks

    known = known or Known()
    recovery, given = recovering.resolve(config.recovery)
    config = replace(config, recovery=recovery)
    compressor = config.compressor
    source = known.once(["model", asdict(config.model)], lambda: models.find_model(config.model, store))
    by_others = known.once(
        ["compressor", values_of(compressor)], lambda: compressing.find_checkpoint(compressor, store)
    )
    models.dtype_of(config.model)
    models.devices(config.model, config.evaluation.processes)
    tasks = known.once(["tasks", asdict(config.task)], lambda: find_tasks(config.task, store))

    dense = DenseModel(config.model, models.identity(config.model, source).key)

    def text(name: str) -> Text:
        corpus = asdict(config.corpus) if name in ("corpus", config.corpus.name) else name
        asked = ["text", corpus, config.data_dir, dense.key]
        return known.once(asked, lambda: named_corpus(name, config.corpus, config.data_dir, store, dense))

    calibration = text(compressor.calibration.corpus or "corpus")
    if compressing.works(compressor) or recovering.reads_calibration(recovery):
        refuse_evaluated(calibration, tasks)
    if recovering.reads_corpus(recovery):
        refuse_evaluated(text("corpus"), tasks)
    perplexity = {text(name).name: text(name) for name in config.evaluation.perplexity}
    given.refuse_evaluated(tasks)
    seen = _router_tasks(config, tasks, store, known)
    return config, ResolvedInputs(source, tasks, text("corpus"), calibration, by_others, perplexity, given, seen)


def _router_tasks(config: Config, evaluated: list[TaskSource], store: Store, known: Known) -> list[TaskSource]:
    """The tasks on whose outcomes a selector is fitted.

    Raises:
        UserError: there is no such task, it has no choices, or the run evaluates it, or another with its questions.
    """
    from idp.tasks.tasks import find_tasks

    asked = recovering.router_tasks(config.recovery, config.task)
    if asked is None:
        return []
    option = "recovery.selector.tasks"
    try:
        found = known.once(["tasks", asdict(asked)], lambda: find_tasks(asked, store))
    except UserError as error:
        raise UserError(str(error).replace("task.names", option)) from None
    for source in found:
        if source.generates or source.scores_whole_texts:
            raise UserError(f"{option}: {source.name} has no choices to be right or wrong about; name others")
        for other in evaluated:
            same = {source.name, source.runs} & {other.name, other.runs}
            if same or source.dataset == other.dataset:
                how = "" if same else f" as {other.name}, of the same data set"
                raise UserError(
                    f"{option}: a router would be trained on {source.name}, which this run evaluates{how}; leave it out"
                    " there, or out of task.names"
                )
    return found


def shape_of(model: Model, source: models.ModelSource, store: Store, known: Known | None = None) -> Shape:
    """The dense model without its weights, of which none is read.

    Raises:
        UserError: it is no causal language model.
    """
    from idp.models.described import described

    def found() -> Shape:
        folder = described(model, source, store)
        return Shape(folder, models.open_empty(folder, model))

    return (known or Known()).once(["shape", asdict(model), source.identity], found)
