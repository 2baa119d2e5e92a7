"""A row of the tables: the models that differ by seeds alone, and their figures over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from idp.records.measured import REPAIRED, ModelScores
from idp.records.schema import LatencyRow
from idp.records.seeds import TRAINING, by_chance, seed_label, seeds_label, seeds_of

T = TypeVar("T")
Part = Literal["prefill", "decode"]  # of generation that is timed
PARTS: tuple[Part, ...] = ("prefill", "decode")
WeightFigure = Literal["sparsity", "bits_per_weight", "packed_bytes", "effective_bytes"]  # that all weights have


@dataclass
class Cell:
    """Models that differ by seeds alone: of training, of calibration."""

    id: str
    members: list[ModelScores]  # by seed
    parent: str | None = None  # `id` of the cell that these models were made from
    weights: str = ""  # the same for a compressed cell and all repairs of it
    compressor: str = ""  # with what sets it apart from others of the name
    recovery: str = ""

    @property
    def first(self) -> ModelScores:
        """The member with the lowest seed: what is no figure is the same in all."""
        return self.members[0]

    @property
    def name(self) -> str:
        """Compressor and recovery in a phrase."""
        if self.first.role == REPAIRED:
            return f"{'dense' if self.compressor == 'none' else self.compressor} + {self.recovery}"
        return "dense" if self.first.role == "dense" else self.compressor

    @property
    def runs(self) -> int:
        """How many models it is the mean of."""
        return len(self.members)

    @property
    def seeds(self) -> list[int]:
        """The training seeds; empty where nothing was trained by this run's seed."""
        return [seeds_of(model)[TRAINING] for model in self.members] if self.first.role == REPAIRED else []

    @property
    def seeds_label(self) -> str:
        """Its seeds in words: those of training, and others that vary."""
        return seeds_label(self.members)

    def seed_label(self, model: ModelScores) -> str:
        """The seeds of one of its runs, as far as they tell it from the others."""
        return seed_label(model, self.members)

    @property
    def of_one_seed(self) -> bool:
        """Whether it is a single run of what another seed would have made otherwise."""
        return self.runs == 1 and by_chance(self.first)

    def score(self, task: str) -> float | None:
        """The task's main score, over seeds; None where a seed lacks it."""
        return self._over_seeds(lambda model: model.tasks[task].value if task in model.tasks else None)

    def stderr(self, task: str) -> float | None:
        """Its standard error over documents (with several seeds their mean: an upper bound)."""
        return self._over_seeds(lambda model: model.tasks[task].stderr if task in model.tasks else None)

    def mean(self, tasks: list[str]) -> float | None:
        """The unweighted mean of the tasks' scores; None where one is missing."""
        scores = complete(self.score(task) for task in tasks)
        return statistics.fmean(scores) if scores else None

    def mean_stderr(self, tasks: list[str]) -> float | None:
        """The mean's standard error over documents."""
        errors = complete(self.stderr(task) for task in tasks)
        return float(sum(error**2 for error in errors) ** 0.5 / len(errors)) if errors else None

    def spread(self, tasks: list[str]) -> float | None:
        """The standard deviation over seeds of the mean of `tasks`; None for one seed, or where a score is missing."""
        if len(self.members) < 2 or any(task not in model.tasks for model in self.members for task in tasks):
            return None
        return statistics.stdev(statistics.fmean(model.tasks[t].value for t in tasks) for model in self.members)

    def perplexity(self, corpus: str) -> float | None:
        """Perplexity on a text, over seeds."""
        return self._over_seeds(lambda model: model.perplexity[corpus].value if corpus in model.perplexity else None)

    def perplexity_spread(self, corpus: str) -> float | None:
        """Its standard deviation over seeds; None for one seed, or where one lacks it."""
        if len(self.members) < 2 or any(corpus not in model.perplexity for model in self.members):
            return None
        return statistics.stdev(model.perplexity[corpus].value for model in self.members)

    def weight(self, key: WeightFigure) -> float:
        """A figure of the weights, such as `bits_per_weight`, over seeds."""
        return statistics.fmean(model.weights[key] for model in self.members)

    def divergence(self, part: str, name: str) -> dict[str, float] | None:
        """Fidelity to dense on one of the `texts`, or on the contexts of one of the `tasks`, over seeds.

        Of each figure (`mean_kl`, `same_top`, `right_to_wrong`, ...) the mean; of several seeds the standard deviation
        of `mean_kl` as `deviation`.
        """
        measured = complete(((model.fidelity or {}).get(part) or {}).get(name) for model in self.members)
        if measured is None or any(each.get("mean_kl") is None for each in measured):
            return None
        found = [{**each, **(each.get("flips") or {})} for each in measured]
        numeric = [
            key
            for key in found[0]
            if all(isinstance(each.get(key), (int, float)) and not isinstance(each[key], bool) for each in found)
        ]
        figures = {key: statistics.fmean(each[key] for each in found) for key in numeric}
        if len(found) > 1:
            figures["deviation"] = statistics.stdev(each["mean_kl"] for each in found)
        return figures

    def peak(self, place: str) -> int | None:
        """The most memory that its making and measuring took, in bytes, over its seeds: of `host` or `device`."""
        return max((model.peaks[place] for model in self.members if place in model.peaks), default=None)

    def latency(self, part: Part) -> tuple[float, float | None] | None:
        """Ratio to the compressed model of `prefill` or `decode` (the first shape timed), and that of merged LoRA."""
        for model in self.members:
            if ratios := latency_ratios(model, part):
                return ratios
        return None

    def _over_seeds(self, of: Callable[[ModelScores], float | None]) -> float | None:
        values = complete(of(model) for model in self.members)
        return None if values is None else statistics.fmean(values)


def complete(values: Iterable[T | None]) -> list[T] | None:
    """The values, or None where one of them is not known."""
    known = list(values)
    found = [value for value in known if value is not None]
    return found if len(found) == len(known) else None


def latency_ratios(model: ModelScores, part: Part) -> tuple[float, float | None] | None:
    """See `Cell.latency`."""
    if model.latency is None:
        return None
    rows = model.latency["rows"]
    first = rows[0]
    shape = {row["variant"]: row[part]["ratio"] for row in rows if _shape(row) == _shape(first)}
    if model.role != REPAIRED:
        return (shape[model.role], None) if model.role in shape else None
    unmerged = [name for name in shape if name not in ("dense", "compressed") and not name.endswith("_merged")]
    if not unmerged:
        return None
    name = "idp" if "idp" in unmerged else unmerged[-1]
    return shape[name], shape.get(f"{name}_merged")


def _shape(row: LatencyRow) -> tuple[int, int]:
    return row["batch_size"], row["input_tokens"]
