"""What a router learns from: each prompt of a run's bank alone on tasks that the run does not evaluate, and how right.

The same functions serve a plan and a run. In a plan, the stages' products are there as their identities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from idp import rows
from idp.config import Config
from idp.errors import UserError
from idp.evaluate import benchmark as benchmarks
from idp.evaluate.benchmark import RESULTS, SAMPLES, Benchmark
from idp.evaluate.measured import Measured
from idp.recover.graded import Documents, GradedOutcomes
from idp.recover.selection import Selection
from idp.rows import Row
from idp.store import Identity, Product, Store

if TYPE_CHECKING:
    from pathlib import Path

    from idp.models import LoadedModel
    from idp.prompting.prefix import Prefixes
    from idp.tasks.tasks import TaskSource

Finished = Callable[[str, str, Product], None]


@dataclass(frozen=True)
class Graded:
    """Each prompt of a bank alone, and the tasks on which a router is shown how right it is."""

    prompts: list[Row]
    benchmark: Benchmark

    def identities(self, folder: Path, store: Store | None) -> list[Measured[Identity]]:
        """What each prompt's scores are, in order; `folder` has the model's config and tokenizer."""
        return [benchmarks.identities(row.subject(folder), self.benchmark, store) for row in self.prompts]


def graded_of(
    config: Config,
    sources: Sequence[TaskSource],
    compressed: Product | Identity,
    repair: Product | Identity | None,
    prompts: Sequence[str],
) -> Graded | None:
    """What a run measures for its router; None where nothing is learned from outcomes.

    Args:
        config: the run's, with its tokens per batch.
        sources: the router's tasks.
        compressed: the compress stage's.
        repair: the recover stage's.
        prompts: the names of those of its bank.
    """
    choice = config.recovery.choice
    if repair is None or choice is None or not choice.learns_outcomes or len(prompts) < 2:
        return None
    row = Row("repaired", compressed, repair, config.recovery, Selection(choice.selector, list(prompts), None, None))
    documents = choice.selector.router_tasks(config.task).documents
    return Graded(rows.alone(row), Benchmark(config.model, config.evaluation, sources, documents, {}))


def outcomes_of(graded: Graded | None, folder: Path, store: Store, finished: Finished) -> GradedOutcomes | None:
    """The same as the select stage takes it: measured, and read, if a router is to be fitted.

    Args:
        graded: as `graded_of` gives it.
        folder: of the model's config and tokenizer.
        store: where products live.
        finished: called with the prompt, the task and its product.
    """
    if graded is None:
        return None
    measured: list[Measured[Product]] = []

    def gather() -> None:
        measured[:] = rows.measure([], graded.prompts, graded.benchmark, store, finished)[1]

    def read(loaded: LoadedModel, prefixes: Prefixes) -> Documents:
        return documents_of(measured, graded.benchmark.tasks, loaded, prefixes)

    return GradedOutcomes(keys_of(graded.identities(folder, store)), gather, read)


def keys_of(prompts: Sequence[Measured[Any]]) -> list[str]:
    """The keys of each prompt's scores, by prompt and task."""
    return [identity.key for each in prompts for identity in each.tasks.values()]


def documents_of(
    prompts: Sequence[Measured[Product]], sources: Sequence[TaskSource], loaded: LoadedModel, prefixes: Prefixes
) -> Documents:
    """All documents of the tasks, each as a selector reads it while it is scored, and how right each prompt is on it.

    Args:
        prompts: what each scored by itself, in the bank's order.
        sources: the tasks.
        loaded: the model, whose tokenizer cuts contexts.
        prefixes: of the bank.

    Raises:
        UserError: of a task it is not known which of its choices are right.
    """
    import torch

    from idp.evaluate import contexts

    reader = contexts.reader(loaded.tokenizer, loaded.model.config, int(prefixes.lengths.max()), prefixes.beginning)
    read: list[list[int]] = []
    outcomes, names = [], []
    for source in sources:
        products = [each.tasks[source.name] for each in prompts]
        found = [contexts.tokens(reader, document) for document in contexts.documents(products[0])]
        outcomes.append(torch.tensor([_outcomes(product, source) for product in products], dtype=torch.float64).t())
        read += found
        names += [source.name] * len(found)
    return Documents(read, torch.cat(outcomes), names)


def _outcomes(product: Product, source: TaskSource) -> list[float]:
    """The probability of the right choice of each document, in the order of the split."""
    from pyarrow import parquet

    from idp.records.outcomes import graded_documents
    from idp.records.scores import main_metric

    metric = main_metric(source.runs, product.read(RESULTS)["results"][source.runs])
    found = graded_documents(parquet.read_table(product.path / SAMPLES).to_pylist(), metric)
    if found is None:
        raise UserError(
            f"recovery.selector.tasks: {source.name} is scored by {metric.split(',')[0]}, which does not say how"
            " probable its right choices are; name tasks of multiple choice"
        )
    return found.tolist()
