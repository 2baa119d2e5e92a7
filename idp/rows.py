"""The models that a run measures: its own and those that it is compared with.

The same functions serve a plan and a run. In a plan, the stages' products are there as their identities.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from idp import models
from idp.config import Config, Model, Recovery
from idp.evaluate import oracle
from idp.evaluate.benchmark import Benchmark, Subject
from idp.evaluate.measured import Measured
from idp.evaluate.stage import Finished, latency_identity, time_models
from idp.evaluate.stage import measure as measure_model
from idp.evaluate.told import Told
from idp.prompting.selectors.fixed import fixed
from idp.prompting.variants import Variants
from idp.recover import opening
from idp.recover.selection import Selection
from idp.store import Identity, Product, Store, digest


@dataclass(frozen=True)
class Row:
    """One model that a run measures: compressed weights, a repair of them or None, and how it was made."""

    name: str  # dense, compressed or repaired, or that of a prompt
    weights: Product | Identity
    repair: Product | Identity | None
    recovery: Recovery | None
    selection: Selection | None = None  # how one of several prompts is chosen
    reference: bool = False  # whether others are held against what it predicts
    control: bool = False  # whether it is one prompt of a bank alone, beside the model that chooses among them

    @property
    def title(self) -> str:
        """What is said of it while it is measured."""
        return f"control {self.name}" if self.control else self.name

    @property
    def key(self) -> str:
        """That of the repair, or of the weights where there is none."""
        return (self.repair or self.weights).key

    @property
    def uses_labels(self) -> bool:
        """Whether it chooses with the answers in hand, so that it is read off from its prompts alone."""
        return self.selection is not None and self.selection.options.uses_labels

    @property
    def composed(self) -> bool:
        """Whether it is composed of its prompts, where each of them is measured alone."""
        return self.selection is not None and self.selection.options.chooses_one

    def subject(self, folder: Path) -> Subject:
        """What is measured of it; `folder` has its config and tokenizer.

        Raises:
            NotKnownYet: what decides among its prompts is still to be found.
        """
        selector = self.selection.identity if self.selection is not None else None
        return Subject(self.name, self.key, folder, selector, self.reference, self.title)


def rows_of(
    config: Config,
    dense: Product | Identity | None,
    compressed: Product | Identity,
    repair: Product | Identity | None,
    selection: Selection | None,
) -> list[Row]:
    """The run's own model, last, and before it, unless `baselines=false`, the dense and the compressed one.

    Args:
        config: the run's.
        dense: the dense model, where the run `measures_dense`.
        compressed: the compress stage's.
        repair: the recover stage's; None where nothing is repaired.
        selection: how one of several prompts is chosen.
    """
    found = []
    if dense is not None:
        found.append(Row("dense", dense, None, None))
    if config.baselines or repair is None:
        found.append(Row("dense" if _is_plain(config) else "compressed", compressed, None, None))
    if repair is not None:
        found.append(Row("repaired", compressed, repair, config.recovery, selection))
    if config.evaluation.fidelity and len(found) > 1 and found[0].name == "dense":
        found[0] = replace(found[0], reference=True)
    return found


def measures_dense(config: Config) -> bool:
    """Whether a run measures the dense model beside its own: as a product of the compress stage, as any model is."""
    return config.baselines and not _is_plain(config)


def per_prompt(config: Config, row: Row) -> list[Row]:
    """Each prompt of a row's bank alone, in order: controls for a choice among several, and the oracle's source.

    They are the products of `recovery.selector=fixed recovery.selector.prompt=<number>`. Empty where there is no choice
    or no control is asked for.
    """
    choice = config.recovery.choice
    if (
        row.selection is None
        or row.recovery is None
        or not (row.uses_labels or (choice is not None and choice.controls))
    ):
        return []
    return alone(row)


def alone(row: Row) -> list[Row]:
    """Each prompt of a row's bank by itself, in order; they are the same to every selector of the bank."""
    assert row.selection is not None and row.recovery is not None  # or there is no bank
    found = []
    for number, prompt in enumerate(row.selection.prompts):
        options = fixed(number)
        recovery = row.recovery.choosing(options)
        selection = replace(row.selection, options=options, fitted=None)
        found.append(replace(row, name=prompt, recovery=recovery, selection=selection, control=True))
    return found


def measure(
    rows: list[Row], prompts: list[Row], benchmark: Benchmark, store: Store, finished: Finished
) -> tuple[dict[str, Measured], list[Measured]]:
    """Scores of every row by its name, and of each prompt alone; those of a choice among prompts come from these."""
    told = Told(benchmark, len(prompts) + sum(not row.uses_labels for row in rows))

    def said(row: Row, part: str, product: Product) -> None:
        told(row.title, part, product)
        finished(row.name, part, product)

    of_prompts = [_measure(row, benchmark, store, None, said) for row in prompts]
    measured: dict[str, Measured] = {}
    for row in rows:
        if row.uses_labels and row.selection is not None:
            subject = row.subject(models.model_folder(_made(row.weights)))
            measured[row.name] = oracle.measure(subject, benchmark, of_prompts, row.selection.options, store)
        else:
            alone = of_prompts if row.composed else ()
            measured[row.name] = _measure(row, benchmark, store, measured.get("dense"), said, alone)
    return measured, of_prompts


def _measure(
    row: Row,
    benchmark: Benchmark,
    store: Store,
    dense: Measured | None,
    said: Callable[[Row, str, Product], None],
    alone: Sequence[Measured] = (),
) -> Measured:
    return measure_model(
        row.subject(models.model_folder(_made(row.weights))),
        benchmark,
        opener(row, benchmark.model),
        store,
        dense,
        lambda _, part, product: said(row, part, product),
        alone,
    )


def opener(row: Row, model: Model) -> Callable[..., Any]:
    """Brings a row's model into memory, on a device that is named or on the config's."""
    fitted = row.selection.fitted if row.selection is not None else None
    return functools.partial(
        opening.open_repaired,
        model,
        _made(row.weights),
        _made(row.repair) if row.repair is not None else None,
        row.recovery,
        fitted=fitted,
    )


def latency_of(config: Config, rows: list[Row], bos: tuple[int, ...]) -> Identity | None:
    """What the latency of the rows side by side is as a product; None unless it is asked for.

    Raises:
        NotKnownYet: what decides among prompts is still to be found.
    """
    if not config.latency.enabled:
        return None
    return latency_identity(_parents(rows), config.latency, config.model, bos)


def time(config: Config, rows: list[Row], store: Store, bos: tuple[int, ...]) -> Product | None:
    """Latency of the rows side by side; None unless it is asked for."""
    if not config.latency.enabled:
        return None
    final = rows[-1]

    def open_variants() -> Variants:
        fitted = final.selection.fitted if final.selection is not None else None
        merged = config.latency.merged
        repair = _made(final.repair) if final.repair is not None else None
        variants = opening.open_variants(config.model, _made(final.weights), repair, final.recovery, merged, fitted)
        if rows[0].name == "dense" and rows[0].weights != final.weights:
            variants.stand_in("dense", "compressed", variants["compressed"])
        return variants

    return time_models(open_variants, _parents(rows), config.latency, config.model, store, bos)


def _parents(rows: list[Row]) -> list[str]:
    """What latency depends on: the models, and how each chooses."""
    chosen = [digest(row.selection.identity) for row in rows if row.selection is not None]
    return [row.key for row in rows] + chosen


def _is_plain(config: Config) -> bool:
    return not config.compressor.needs


def _made(product: Product | Identity) -> Product:
    assert isinstance(product, Product)  # a plan has identities in their place, and opens no model
    return product
