"""The products of a run in the order in which they are made, each under the key that its own stage gives it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import models, rows
from idp.compress import stage as compressing
from idp.config import Config, Recovery
from idp.evaluate import benchmark, guard, oracle
from idp.evaluate.benchmark import Benchmark
from idp.evaluate.measured import Measured
from idp.models import LoadedModel
from idp.plan import workload
from idp.plan.inputs import ResolvedInputs, Shape
from idp.plan.workload import Machine, PromptReader, Workload
from idp.recover import selection as selecting
from idp.recover import stage as recovering
from idp.recover.selection import BankIdentity, NotKnownYet, Selection
from idp.routing import Graded, graded_of, keys_of
from idp.rows import Row
from idp.store import Identity, Product, Store

if TYPE_CHECKING:
    from idp.tasks.tasks import TaskSource


@dataclass(frozen=True)
class Step:
    """A product that a run makes or reuses.

    Args:
        stage: what makes it: the first folder in the store.
        label: what it is, in a word or two.
        identity: what its key is the hash of; None where that is known once `after` is done.
        works: what making it computes; nothing where it is there.
        recovery: of a repair, what makes it.
        documents: of a task's scores, how many they are of.
        after: the stage that says what the identity is, where it is not known before.
        finished: the product, where the store has it already.
    """

    stage: str
    label: str
    identity: Identity | None
    works: tuple[Workload, ...] = ()
    recovery: Recovery | None = None
    documents: int = 0
    after: str = ""
    finished: Product | None = None

    @property
    def key(self) -> str | None:
        """Of the product; None where it is not known yet."""
        return self.identity.key if self.identity is not None else None

    @property
    def reused(self) -> bool:
        """Whether the store has it."""
        return self.finished is not None


@dataclass(frozen=True)
class Walk:
    """What the steps of a run follow from.

    Args:
        config: the run's, resolved.
        inputs: what it needs from outside.
        shape: its model without weights.
        resolved: what its compressor's options come to with the model.
        store: which knows what is there; None: nothing is looked up.
        machine: how long documents are, as far as that is known.
    """

    config: Config
    inputs: ResolvedInputs
    shape: Shape
    resolved: Any
    store: Store | None
    machine: Machine

    def steps(self) -> Iterator[Step]:
        """All products, each once."""
        seen: set[str] = set()
        for step in self._all():
            if step.key is None:
                yield step
            elif step.key not in seen:
                seen.add(step.key)
                yield step

    @property
    def folder(self) -> Path:
        """Of the model's config and tokenizer; those of every model that is made of it are the same."""
        return self.shape.folder

    @property
    def empty(self) -> LoadedModel:
        """The model without weights."""
        return self.shape.empty

    @property
    def lengths(self) -> list[int]:
        """Tokens of the repair's prompts."""
        return workload.bank_lengths(self.config.recovery, self.empty.tokenizer)

    def _all(self) -> Iterator[Step]:
        config = self.config
        yield from self._guards()
        dense = models.identity(config.model, self.inputs.source)
        yield self._step(dense)
        if self.store is not None:
            yield self._step(models.tokenizer_identity(config.model, dense.key))
        for made in (text.made for text in self.inputs.texts if text.made is not None):
            yield self._step(made.product, workload.of_generated(made.product, made.tokens))
        compressed = self._compressed(dense)
        yield self._step(compressed, workload.of_compression(config.compressor, compressed.key, self._by_others))
        repairs = recovering.identities(
            config.recovery,
            config.model,
            compressed.key,
            self.folder,
            self.inputs.corpus,
            config.seed,
            dense.key,
            self.inputs.calibration_of(config),
        )
        for recovery, identity in self._needed(repairs):
            again = identity.parent != compressed.key  # stored once more, in fewer bits
            works = () if again else workload.of_repair(recovery, identity.key, config.compressor.calibration)
            step = self._step(identity, works, recovery=recovery)
            if not (again or step.reused):
                yield from self._taught(recovery, dense)
            yield step
        repair = repairs[-1][1] if repairs else None
        graded = self._graded(compressed, repair)
        outcomes = graded.identities(self.folder, self.store) if graded is not None else []
        selection = self._selection(repair, outcomes)
        yield from self._choice(selection, graded, outcomes)
        uncompressed = None
        if rows.measures_dense(config):
            uncompressed = compressing.uncompressed_identity(dense.key, self.folder)
            yield self._step(uncompressed, workload.of_compression(None, uncompressed.key, False))
        found = rows.rows_of(config, uncompressed, compressed, repair, self._as_known(selection))
        yield from self._scores(found)
        yield from self._latency(found)

    def _needed(self, repairs: list[tuple[Recovery, Identity]]) -> Iterator[tuple[Recovery, Identity]]:
        """Without what is made beneath a repair that is there already: it is asked for as the other is made."""
        final = next((identity for recovery, identity in repairs if recovery is self.config.recovery), None)
        there = final is not None and self.store is not None and self.store.finished(final) is not None
        for recovery, identity in repairs:
            if recovery is self.config.recovery or not there:
                yield recovery, identity

    def _taught(self, recovery: Recovery, dense: Identity) -> Iterator[Step]:
        """What is kept of the dense model's predictions for a repair that learns from that."""
        for kept in recovering.taught_identities(
            recovery, self.config.model, dense.key, self.folder, self.inputs.corpus
        ):
            yield self._step(kept, workload.of_taught(kept))

    def _guards(self) -> Iterator[Step]:
        """The small model of the class, which is held to its own forward pass."""
        if self.store is None:
            return
        identity = guard.identity_of(self.empty.model.config, self.config.model.trust_remote_code)
        if identity is not None:
            yield self._step(identity, [Workload(workload.GUARD, identity.key, 0, 0)])

    @property
    def _by_others(self) -> bool:
        return self.inputs.external is not None

    def _compressed(self, dense: Identity) -> Identity:
        config = self.config
        return compressing.identity(
            config.compressor,
            self.resolved,
            config.model,
            dense.key,
            self.folder,
            self.inputs.calibration,
            self.inputs.external,
        )

    @property
    def _bank(self) -> BankIdentity:
        """What the bank of the repair will be."""
        return selecting.bank_ahead(self.config.recovery, models.bos_of(self.folder, self.config.model), self.lengths)

    def _graded(self, compressed: Identity, repair: Identity | None) -> Graded | None:
        """What is measured for a router to learn from."""
        prompts = self._bank.prompts if repair is not None else []
        return graded_of(self.config, self.inputs.router_tasks, compressed, repair, prompts)

    def _selection(self, repair: Identity | None, outcomes: list[Measured[Identity]]) -> Selection | None:
        """How the run chooses, with what its products will be."""
        if repair is None:
            return None
        config, corpus = self.config, self.inputs.corpus
        return selecting.selection_of(config.recovery, config.model, repair.key, self._bank, corpus, keys_of(outcomes))

    def _as_known(self, selection: Selection | None) -> Selection | None:
        """The same with the fitted selector itself, where that is there already: it may say what was chosen."""
        if selection is None or selection.fitted is None or self.store is None:
            return selection
        return replace(selection, fitted=self.store.finished(selection.fitted) or selection.fitted)

    def _choice(
        self, selection: Selection | None, graded: Graded | None, outcomes: list[Measured[Identity]]
    ) -> Iterator[Step]:
        if selection is None:
            return
        steps: list[Step] = []
        if (heldout := selection.heldout) is not None:
            steps = [self._step(heldout, workload.of_heldout(self.config.recovery, heldout.key, self.lengths))]
        if selection.fitted is not None and graded is not None:
            fitted = self._step(selection.fitted, workload.of_router((heldout or selection.fitted).key))
            if not fitted.reused:
                yield from self._shown(graded, outcomes)
            steps = [fitted, *steps]
        elif selection.fitted is not None:
            steps.append(self._step(selection.fitted))
        yield from steps

    def _shown(self, graded: Graded, outcomes: list[Measured[Identity]]) -> Iterator[Step]:
        """Of each prompt alone, on the tasks that a router learns from."""
        for row, scores in zip(graded.prompts, outcomes, strict=True):
            reader = workload.reader_of(row, self.lengths, controls=False)
            reader = replace(reader, key=f"{reader.key} for the router")
            for source in graded.benchmark.tasks:
                identity, count = scores.tasks[source.name], source.counted(graded.benchmark.documents)
                works = workload.of_task(reader, identity.key, count, source.name, self.machine)
                yield self._step(identity, works, documents=count)

    def _scores(self, found: list[Row]) -> Iterator[Step]:
        """Of each prompt alone, then of each model."""
        config, inputs = self.config, self.inputs
        measured_on = Benchmark(config.model, config.evaluation, inputs.tasks, config.task.documents, inputs.perplexity)
        of_prompts, dense = [], None
        for row in rows.per_prompt(config, found[-1]):
            reader = workload.reader_of(row, self.lengths, controls=False)
            scores = benchmark.identities(row.subject(self.folder), measured_on, self.store)
            of_prompts.append(scores)
            yield from self._of_row(row, scores, reader)
        for row in found:
            reader = workload.reader_of(row, self.lengths, bool(of_prompts))
            try:
                subject = row.subject(self.folder)
            except NotKnownYet as unknown:
                yield from self._unknown(row, reader, str(unknown), dense)
                continue
            if row.uses_labels and row.selection is not None:
                scores = oracle.identities(subject, measured_on, of_prompts, row.selection.options)
            else:
                scores = benchmark.identities(subject, measured_on, self.store, dense)
            if row.reference:
                dense = scores
            yield from self._of_row(row, scores, reader)

    def _of_row(self, row: Row, scores: Measured, reader: PromptReader) -> Iterator[Step]:
        for source in self.inputs.tasks:
            identity, count = scores.tasks[source.name], self._documents(source)
            yield self._step(identity, self._of_task(reader, identity.key, source), documents=count)
            if scores.fidelity is not None:
                compared = scores.fidelity.tasks[source.name]
                yield self._step(compared, self._of_contexts(reader, compared.key, source))
        for corpus, identity in scores.corpora.items():
            evaluation = self.config.evaluation
            if scores.fidelity is not None:
                compared = scores.fidelity.corpora[corpus]
                yield self._step(compared, workload.of_corpus(reader, compared.key, evaluation, compared=True))
                yield self._step(identity)
            else:
                yield self._step(identity, workload.of_corpus(reader, identity.key, evaluation))

    def _unknown(self, row: Row, reader: PromptReader, after: str, dense: Measured | None) -> Iterator[Step]:
        """The scores of a model whose keys a stage decides: which prompt was the best on held-out text."""
        compares = dense is not None and dense.fidelity is not None
        evaluation = self.config.evaluation
        for source in self.inputs.tasks:
            key, count = f"{reader.key} {source.name}", self._documents(source)
            label = f"{row.name} {source.runs}"
            works = tuple(self._of_task(reader, key, source))
            yield Step("measure", label, None, works, documents=count, after=after)
            if compares:
                works = tuple(self._of_contexts(reader, key, source))
                yield Step("fidelity", f"{row.name} contexts of {source.name}", None, works, after=after)
        for corpus in self.inputs.perplexity:
            works = tuple(workload.of_corpus(reader, f"{reader.key} {corpus}", evaluation, compares))
            if compares:
                yield Step("fidelity", f"{row.name} text of {corpus}", None, works, after=after)
            label = f"{row.name} perplexity of {corpus}"
            yield Step("measure", label, None, () if compares else works, after=after)

    def _latency(self, found: list[Row]) -> Iterator[Step]:
        latency = self.config.latency
        try:
            identity = rows.latency_of(self.config, found, self.empty.bos)
        except NotKnownYet as unknown:
            works = tuple(workload.of_latency(latency, found[-1].key, found, self.lengths))
            yield Step("latency", "", None, works, after=str(unknown))
            return
        if identity is not None:
            yield self._step(identity, workload.of_latency(latency, identity.key, found, self.lengths))

    def _documents(self, source: TaskSource) -> int:
        return source.counted(self.config.task.documents)

    def _of_task(self, reader: PromptReader, key: str, source: TaskSource) -> Iterator[Workload]:
        reader = replace(reader, composed=reader.composed and benchmark.composable(source))
        return workload.of_task(reader, key, self._documents(source), source.name, self.machine)

    def _of_contexts(self, reader: PromptReader, key: str, source: TaskSource) -> Iterator[Workload]:
        return workload.of_contexts(reader, key, self._documents(source), source.name, self.machine)

    def _step(
        self, identity: Identity, works: Iterable[Workload] = (), recovery: Recovery | None = None, documents: int = 0
    ) -> Step:
        finished = self.store.finished(identity) if self.store is not None else None
        ahead = tuple(works) if finished is None else ()
        return Step(identity.stage, identity.label, identity, ahead, recovery, documents, finished=finished)
