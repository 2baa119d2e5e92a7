"""The plan of a run: what it needs, is refused for, and will make, known before anything is computed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from idp import routing
from idp.config import Config
from idp.evaluate.benchmark import Benchmark
from idp.evaluate.room import batch_tokens
from idp.plan import estimate, refusals
from idp.plan.estimate import Size, Speed
from idp.plan.inputs import Known, ResolvedInputs, Shape, resolve, shape_of
from idp.plan.machine import Here
from idp.plan.steps import Step, Walk
from idp.recover import selection as selecting
from idp.recover.graded import GradedOutcomes
from idp.store import Product, Store


@dataclass(frozen=True)
class Plan:
    """A run before it computes anything.

    Args:
        config: the run's, with what follows from the files that its recovery names.
        inputs: where model, documents and texts are.
        shape: the dense model without its weights.
        resolved: what the compressor's options come to with the model.
        store: where products are, and will be.
        batch_tokens: per forward pass, as it comes to on this machine.
        known: what was found for other runs of a sweep.
    """

    config: Config
    inputs: ResolvedInputs
    shape: Shape
    resolved: Any
    store: Store
    batch_tokens: int
    known: Known

    @functools.cached_property
    def steps(self) -> Sequence[Step]:
        """Every product that the run makes or reuses, in the order in which it does; each once."""
        machine = Here([*self.inputs.tasks, *self.inputs.router_tasks], self.shape.empty.tokenizer, self.known)
        walk = Walk(self._sized, self.inputs, self.shape, self.resolved, self.store, machine)
        return list(walk.steps())

    @functools.cached_property
    def size(self) -> Size:
        """Of its model."""
        return estimate.size_of(self.config, self.shape.empty)

    @functools.cached_property
    def speed(self) -> Speed:
        """Of this machine, by what the store has."""
        model, layers = self.config.model, self.size.shape.num_hidden_layers
        asked = ["speed", model.device, model.dtype, str(self.store.root), layers]
        return self.known.once(asked, lambda: estimate.speed_here(self.config, self.store, layers))

    @property
    def _sized(self) -> Config:
        return replace(self.config, evaluation=replace(self.config.evaluation, batch_tokens=self.batch_tokens))

    @property
    def benchmark(self) -> Benchmark:
        """What the run measures its models on."""
        config, inputs = self._sized, self.inputs
        return Benchmark(config.model, config.evaluation, inputs.tasks, config.task.documents, inputs.perplexity)

    def outcomes(
        self, compressed: Product, repair: Product | None, finished: routing.Finished
    ) -> GradedOutcomes | None:
        """What a router is to learn from, which is measured when it is asked for; None where there is no router."""
        prompts = selecting.prompts_of(repair)
        graded = routing.graded_of(self._sized, self.inputs.router_tasks, compressed, repair, prompts)
        return routing.outcomes_of(graded, self.shape.folder, self.store, finished)

    def seconds(self, step: Step) -> float:
        """How long making a product takes, the opening of its model apart (`Step.works` says who shares that)."""
        return estimate.seconds_of(step.works, self.speed, self.size)

    def memory(self, step: Step) -> tuple[float, float]:
        """The most bytes of main memory and of a card that making it takes."""
        return estimate.memory_of(step, self._sized, self.size)

    def disk(self, step: Step) -> float:
        """Bytes that it adds to the store."""
        return estimate.disk_of(step, self.config, self.size, self.shape.empty)

    def hold(self) -> None:
        """Refuses a store that cannot take what is made, and what takes a download or a pass of a small model to tell.

        Raises:
            UserError: in one line, what is wrong.
        """
        if not self.store.all_writable():
            made = [step.stage for step in self.steps if step.identity is not None and not step.reused]
            if made:
                self.store.check_writable(made)
        refusals.hold(self.config, self.inputs, self.shape, self.store)


def preflight(config: Config, known: Known | None = None) -> Plan:
    """Finds all that a run needs, refuses what cannot be right, and says what will be made; computes nothing.

    Args:
        config: the run's.
        known: what was found for other runs of a sweep, and is found for them.

    Raises:
        UserError: in one line, what is wrong, where, and what to do.
    """
    known, store = known or Known(), Store(Path(config.store).expanduser())
    config, inputs = resolve(config, store, known)
    shape = shape_of(config.model, inputs.source, store, known)
    resolved = refusals.refuse(config, inputs, shape, store)
    tokens = batch_tokens(config.model, config.evaluation, shape.empty)
    return Plan(config, inputs, shape, resolved, store, tokens, known)
