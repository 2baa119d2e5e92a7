"""Rows of the tables: models that differ by the training seed alone are one row, named by what sets it apart."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from idp.evaluate.tasks import GROUPS, NINE
from idp.report.collect import Collection
from idp.report.measured import REPAIRED, Measured, Setting
from idp.store import digest

FOLLOWS = {"warmup_steps": "steps"}  # settings that are chosen by another one
SAME_MODEL = ("seed", "from", "controls")  # options that one cell's models may differ in
NOT_NAMED = ("kind", "made_from", *SAME_MODEL)  # never what sets two rows apart


@dataclass
class Cell:
    """Models that differ by the training seed alone."""

    id: str
    members: list[Measured]  # by seed
    parent: str | None = None  # `id` of the cell that these models were made from
    compressor: str = ""  # with what sets it apart from others of the name
    recovery: str = ""

    @property
    def first(self) -> Measured:
        """The member with the lowest seed: what is no figure is the same in all."""
        return self.members[0]

    @property
    def name(self) -> str:
        """Compressor and recovery in a phrase."""
        if self.first.role == REPAIRED:
            return f"{'dense' if self.compressor == 'none' else self.compressor} + {self.recovery}"
        return "dense" if self.first.role == "dense" else self.compressor

    @property
    def seeds(self) -> list[int]:
        """The training seeds; empty where nothing was trained by this run's seed."""
        return [model.seed for model in self.members] if self.first.role == REPAIRED else []

    def score(self, task: str) -> float | None:
        """The task's main score, over seeds; None where a seed lacks it."""
        return self._over_seeds(lambda model: model.tasks[task].value if task in model.tasks else None)

    def stderr(self, task: str) -> float | None:
        """Its standard error over documents (with several seeds their mean: an upper bound)."""
        return self._over_seeds(lambda model: model.tasks[task].stderr if task in model.tasks else None)

    def mean(self, tasks: list[str]) -> float | None:
        """The unweighted mean of the tasks' scores; None where one is missing."""
        scores = [self.score(task) for task in tasks]
        return statistics.fmean(scores) if scores and None not in scores else None

    def mean_stderr(self, tasks: list[str]) -> float | None:
        """The mean's standard error over documents."""
        errors = [self.stderr(task) for task in tasks]
        return sum(e**2 for e in errors) ** 0.5 / len(errors) if errors and None not in errors else None

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

    def latency(self, part: str) -> tuple[float, float | None] | None:
        """Ratio to the compressed model of `prefill` or `decode` (the first shape timed), and that of merged LoRA."""
        for model in self.members:
            if ratios := latency_ratios(model, part):
                return ratios
        return None

    def _over_seeds(self, of: Callable[[Measured], float | None]) -> float | None:
        values = [of(model) for model in self.members]
        return statistics.fmean(values) if None not in values else None


def cells(found: Collection, setting: Setting) -> list[Cell]:
    """The rows of one setting: dense, then each compressed model and its repairs."""
    grouped: dict[str, Cell] = {}
    of_model: dict[str, str] = {}
    for model in found.of(setting):
        identity = _identity(model)
        grouped.setdefault(identity, Cell(identity, [])).members.append(model)
        of_model[model.id] = identity
    rows = list(grouped.values())
    for row in rows:
        row.members.sort(key=lambda model: model.seed)
        row.parent = of_model.get(row.first.parent or "")
    _name(rows)

    return sorted(rows, key=lambda row: (row.first.compressor != "none", _natural(row.compressor)))


def latency_ratios(model: Measured, part: str) -> tuple[float, float | None] | None:
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


def task_order(tasks: list[str]) -> list[str]:
    """The nine tasks in the paper's order, then others by name."""
    return [task for task in NINE if task in tasks] + sorted(set(tasks) - set(NINE))


def groups(tasks: list[str]) -> dict[str, list[str]]:
    """The paper's groups of which all tasks are there."""
    return {
        name.replace("_", " "): list(members)
        for name, members in GROUPS.items()
        if name != "all" and set(members) <= set(tasks)
    }


def _shape(row: dict[str, Any]) -> tuple[int, int]:
    return row["batch_size"], row["input_tokens"]


def _identity(model: Measured) -> str:
    if model.role != REPAIRED:
        return model.id
    learned = None
    if model.transfer is not None:
        learned = {key: value for key, value in model.transfer.items() if key in ("kind", "compressor", "corpus")}
    made = _seedless({key: value for key, value in model.config.items() if key != "compressor"})
    weights = {stage: key for stage, key in model.keys.items() if stage in ("load", "compress")}
    return digest([model.setting, weights, made, learned])[:12]


def _seedless(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _seedless(value) for key, value in config.items() if key not in SAME_MODEL}
    return config


def _name(rows: list[Cell]) -> None:
    """Gives each row its names, with the settings that tell it from others of the same kind."""
    for part, base in (("compressor", _compressor), ("recovery", _recovery)):
        alike: dict[str, list[Cell]] = defaultdict(list)
        for row in rows:
            setattr(row, part, base(row.first))
            alike[base(row.first)].append(row)
        for members in alike.values():
            flat = {row.id: dict(_flat(_made(row.first, part))) for row in members}
            apart = _apart(list(flat.values()))
            for row in members:
                said = [f"{apart[key]}={_value(flat[row.id].get(key))}" for key in apart if key in flat[row.id]]
                setattr(row, part, " ".join([getattr(row, part), *said]))


def _compressor(model: Measured) -> str:
    return model.compressor


def _recovery(model: Measured) -> str:
    if model.transfer is not None:
        learned = model.transfer
        return f"transfer of {learned['kind']} ({learned['compressor'] or '?'}, {learned['corpus'] or '?'})"
    if model.selector is None:
        return model.recovery
    return f"{model.recovery} ({model.selector}{', peeks' if model.peeks else ''})"


def _made(model: Measured, part: str) -> dict[str, Any]:
    if part == "compressor":
        return model.config["compressor"] or {}
    corpus = model.config["corpus"]["name"] if model.config["corpus"] else None
    return {**(model.config["recovery"] or {}), "corpus": corpus if model.role == REPAIRED else None}


def _flat(node: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in node.items():
        if isinstance(value, dict):
            if "kind" in value:
                pairs.append((f"{above}{key}", value["kind"]))
            pairs += _flat(value, f"{above}{key}.")
        elif key not in NOT_NAMED:
            pairs.append((f"{above}{key}", value))
    return pairs


def _apart(configs: list[dict[str, Any]]) -> dict[str, str]:
    """The settings in which configs differ, and the shortest name of each.

    Options of a kind, such as a bank's, count where two of that kind differ in them: else the kind says it all.
    """

    def differs(key: str) -> bool:
        values: dict[str, set[str]] = defaultdict(set)
        for config in configs:
            values[repr(config.get(key.rpartition(".")[0]))].add(repr(config.get(key)))
        return any(len(each) > 1 for each in values.values())

    differing = [key for key in {key: None for config in configs for key in config} if differs(key)]
    differing = [key for key in differing if not _goes_without_saying(key, differing, configs)]
    ends = [key.rsplit(".", 1)[-1] for key in differing]
    return {
        key: end if ends.count(end) == 1 else ".".join(key.split(".")[-2:])
        for key, end in zip(differing, ends, strict=True)
    }


def _natural(name: str) -> list[tuple[bool, float, str]]:
    """A key to sort names by, their numbers by size: 16 samples before 256, 2 bits before 10."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(is_number := n % 2 == 1, float(part) if is_number else 0.0, part) for n, part in enumerate(parts)]


def _goes_without_saying(key: str, differing: list[str], configs: list[dict[str, Any]]) -> bool:
    """Whether a setting follows from another one that is said, as the warm-up does where it grows with the steps."""
    above, _, end = key.rpartition(".")
    leader = f"{above}.{FOLLOWS[end]}" if end in FOLLOWS else None
    pairs = {(repr(config.get(leader)), repr(config.get(key))) for config in configs}
    return leader in differing and len(pairs) == len({first for first, _ in pairs})


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(_value, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)
