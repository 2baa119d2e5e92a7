"""What a record says of differences between its models, in words for the cells of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from idp.records.schema import Comparison, IdpBlock, Record, Share, TaskTest

NO_DAMAGE = "no damage beyond noise"
SHARE, SCORE = "share", "score"  # units of a comparison: scores from 0 to 1, and others


def compared(record: Record, after: str, before: str) -> Comparison | None:
    """One model of a run against another, as the record has it; None where it has not."""
    known = record["idp"].get("comparisons") or []
    return next((each for each in known if (each["after"], each["before"]) == (after, before)), None)


def damage(record: Record) -> Comparison | None:
    """The compressed model against the dense one."""
    return compared(record, "compressed", "dense")


def last_step(record: Record) -> Comparison | None:
    """The run's own model against the one that it was made from: a repaired one against what it repairs."""
    row = record["idp"]["row"]
    others = {"repaired": ("compressed", "dense"), "compressed": ("dense",)}.get(row, ())
    return next((found for before in others if (found := compared(record, row, before)) is not None), None)


def unit_of(about: IdpBlock) -> str:
    """Of all differences of a run: shares where every score of every comparison is one."""
    return SHARE if {each["unit"] for each in about.get("comparisons") or []} == {SHARE} else SCORE


def difference_to(before: str, unit: str) -> str:
    """What a column of differences is called; `unit` as of `with_interval`."""
    return f"difference to {before} ({in_points(unit)}95 % CI)"


def in_points(unit: str) -> str:
    """What goes before `95 % CI` in the heads of columns."""
    return "percentage points, " if unit == SHARE else ""


def with_interval(test: Mapping[str, Any] | None, unit: str = SHARE) -> str:
    """A difference and its 95 % confidence interval, such as `+0.4 (-0.3 to +1.1)`; nothing where there is none.

    Args:
        test: `difference`, `low` and `high`.
        unit: of the scores, as a record's comparison has it: `share`, from 0 to 1, whose differences are shown in
            percentage points; `score`, in which they are shown as they are.
    """
    if not test:
        return ""
    if unchanged(test):
        return "0 (nothing changed)"
    value, low, high = (signed(test[key], unit) for key in ("difference", "low", "high"))
    return f"{value} ({low} to {high})"


def signed(value: float, unit: str = SHARE) -> str:
    """A difference with its sign; what rounds to nothing has none that speaks of harm."""
    scale, digits = (100, 1) if unit == SHARE else (1, 3)
    return f"{round(scale * value, digits) + 0.0:+.{digits}f}"


def unchanged(test: Mapping[str, Any]) -> bool:
    """Whether every document has the same outcome before and after: then there is no spread to make an interval of."""
    return test["difference"] == test["low"] == test["high"] == 0


def share(found: Share | None) -> str:
    """The share of the damage that was brought back, such as `34% (10% to 72%)`."""
    return f"{found['share']:.0%} ({found['low']:.0%} to {found['high']:.0%})" if found else NO_DAMAGE


def turned(tests: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many documents turned right and how many wrong, over tasks whose documents are right or wrong."""
    known = [test for test in tests if test.get("gained") is not None]
    return [f"{sum(test[key] for test in known):g}" if known else "" for key in ("gained", "lost")]


def brought_back(tests: Sequence[Mapping[str, Any]]) -> str:
    """Of how many documents that dense has right and compression broke the repair brings back how many: `3 of 8`."""
    known = [test for test in tests if test.get("broken") is not None]
    return " of ".join(f"{sum(test[key] for test in known)}" for key in ("brought_back", "broken")) if known else ""


class Change:
    """The columns of a run's table that say what its last step changed, and how far its models are from dense.

    Args:
        record: the run's.
    """

    def __init__(self, record: Record):
        self.step = last_step(record)
        self.fidelity = record["idp"].get("fidelity") or {}

    @property
    def headers(self) -> list[str]:
        """What the columns are called."""
        found = []
        if self.step is not None:
            repair = ["damage brought back", "brought back"] if self._repairs else []
            found = [difference_to(self.step["before"], self.step["unit"]), *repair, "newly right", "newly broken"]
        return found + (["KL to dense"] if self.fidelity else [])

    def of_task(self, task: str) -> list[str]:
        """The cells of one task."""
        test = self.step["tasks"].get(task) if self.step else None
        return self._tested(test, [test] if test else []) + self._kl([task])

    def of_group(self, group: str, tasks: Sequence[str]) -> list[str]:
        """The cells of the mean over a group's tasks."""
        test = self.step.get("groups", {}).get(group) if self.step else None
        return self._tested(test, self._tests(tasks)) + self._kl(tasks)

    def of_mean(self, tasks: Sequence[str]) -> list[str]:
        """The cells of the mean over all tasks."""
        test: Mapping[str, Any] | None = self.step["mean"] if self.step else None
        if self.step and test and self._repairs:
            test = {**test, "damage_brought_back": self.step["damage_brought_back"]}
        return self._tested(test, self._tests(tasks)) + self._kl(tasks)

    def of_text(self, corpus: str) -> list[str]:
        """The cells of a text: by how many nats per token its loss fell, and what share of the damage that is."""
        test = (self.step.get("texts") or {}).get(corpus) if self.step else None
        if self.step is None or test is None:
            return self._tested(None, []) + self._kl([corpus], "texts")
        repair = [share(test.get("damage_brought_back")), ""] if self._repairs else []
        change = with_interval(test, SCORE)
        return [change if unchanged(test) else f"{change} nats", *repair, "", "", *self._kl([corpus], "texts")]

    @property
    def has_texts(self) -> bool:
        """Whether some text has a difference."""
        return bool(self.step and self.step.get("texts"))

    @property
    def _repairs(self) -> bool:
        return self.step is not None and "damage_brought_back" in self.step

    def _tests(self, tasks: Sequence[str]) -> list[TaskTest]:
        return [self.step["tasks"][task] for task in tasks if task in self.step["tasks"]] if self.step else []

    def _tested(self, test: Mapping[str, Any] | None, tests: Sequence[Mapping[str, Any]]) -> list[str]:
        if self.step is None:
            return []
        repair = []
        if self._repairs:
            repair = [share(test.get("damage_brought_back")) if test else "", brought_back(tests)]
        return [with_interval(test, self.step["unit"]), *repair, *turned(tests)]

    def _kl(self, names: Sequence[str], part: str = "tasks") -> list[str]:
        """One cell: of each model the unweighted mean over `names`; empty where one of them was not measured."""
        if not self.fidelity:
            return []
        cells = []
        for found in self.fidelity.values():
            values = [found.get(part, {}).get(name, {}).get("mean_kl") for name in names]
            cells.append(f"{sum(values) / len(values):.3f}" if values and None not in values else "")
        return [" / ".join(cells) if any(cells) else ""]
