"""What a repair did to documents, by which of the other models had them right: shares and gains, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from idp.stats.significance import Interval, paired_interval

Tables = Mapping[str, np.ndarray]  # of each task

KNOWN, UNKNOWN, SPECIFIC = "gain_on_known", "gain_on_unknown", "specific_gain"
RESTORED, LEARNED, BROKEN, BEYOND = "restored", "learned", "newly_broken", "restored_beyond_learned"
ALONE, OTHERS, CONTROL, OWN = "gain_where_dense_alone", "gain_where_other_alone", "control", "own_beyond_shared"


@dataclass(frozen=True)
class Figure:
    """A ratio of two means over tasks, and what each document contributes to it.

    `value` is the ratio; `parts`, of each task [runs, documents], have it as their unweighted mean over tasks, and the
    same variance, up to terms of second order (the delta method). So sums and differences of figures are figures, and
    a paired test of them is one of their parts.
    """

    value: float
    parts: dict[str, np.ndarray]

    def less(self, other: Figure, times: float = 1.0) -> Figure:
        """This one less `times` the other."""
        parts = {task: table - times * other.parts[task] for task, table in self.parts.items()}
        return Figure(self.value - times * other.value, parts)

    def interval(self) -> Interval:
        """The figure with its 95 % interval over documents and runs."""
        found = paired_interval({task: (np.zeros((1, table.shape[1])), table) for task, table in self.parts.items()})
        return replace(found, difference=self.value)


def share(of: Tables, among: Tables) -> Figure | None:
    """Of the documents in `among` the mean of `of`, each task weighing the same; None where there are none.

    Args:
        of: of each task [runs, documents]; a value outside `among` does not count.
        among: of each task [documents], whether a document is one of them.
    """
    size = float(np.mean([table.mean() for table in among.values()]))
    if not size:
        return None
    chosen = {task: table * among[task] for task, table in of.items()}
    value = float(np.mean([table.mean() for table in chosen.values()])) / size
    return Figure(value, {task: value + (chosen[task] - value * among[task]) / size for task in of})


def fates(dense: Tables, compressed: Tables, repaired: Tables) -> dict[str, Interval]:
    """The shares of `idp.analyze.displaced.Fate`, from which documents each model has right.

    Args:
        dense: of each task [documents], whether the model has each right; `compressed` likewise.
        compressed: see above.
        repaired: of each task [runs, documents].
    """
    broken = {task: dense[task] & ~compressed[task] for task in dense}
    never = {task: ~dense[task] & ~compressed[task] for task in dense}
    kept = {task: dense[task] & compressed[task] for task in dense}
    wrong = {task: ~table for task, table in repaired.items()}
    found = {RESTORED: share(repaired, broken), LEARNED: share(repaired, never), BROKEN: share(wrong, kept)}
    shares = {name: _within(figure.interval()) for name, figure in found.items() if figure is not None}
    restored, learned = found[RESTORED], found[LEARNED]
    if restored is not None and learned is not None:
        shares[BEYOND] = restored.less(learned).interval()
    return gains(dense, compressed, repaired) | shares


def gains(dense: Tables, before: Tables, after: Tables) -> dict[str, Interval]:
    """What a repair gains on the documents that dense had right, on those that it had wrong, and the difference.

    Args:
        dense: of each task [documents], whether it has each right.
        before: of each task [documents], the compressed model's outcome: right or wrong, or the probability that it
            gives the right choice.
        after: of each task [runs, documents], that of the repaired one.
    """
    gained = _gained(before, after)
    known, unknown = share(gained, dense), share(gained, {task: ~table for task, table in dense.items()})
    found = {KNOWN: known, UNKNOWN: unknown}
    if known is not None and unknown is not None:
        found[SPECIFIC] = known.less(unknown)
    return {name: figure.interval() for name, figure in found.items() if figure is not None}


def controlled(dense: Tables, other: Tables, before: Tables, after: Tables) -> dict[str, Interval]:
    """The gains held against a second dense model: what is dense's own, and what any model would have of it.

    A repair that helps easy documents, or all alike, gains on the documents that dense alone has right as it does on
    those that the other one alone has right: the two are as easy. One that brings back what *this* dense model knew
    gains on the first.

    Args:
        dense: of each task [documents], whether it has each right; `other` likewise of the second dense model.
        other: see above.
        before: as of `gains`, as is `after`.
        after: see above.

    Returns:
        `gain_where_dense_alone` and `gain_where_other_alone` are those gains, `control` their difference.
        `own_beyond_shared` is the first minus twice the second: above 0 where more than half of the gain is dense's
        own. That is what is tested: of impostors, `control` keeps a few points, which many documents would call
        significant. Empty where one of the two has no document alone.
    """
    gained = _gained(before, after)
    dense_only = share(gained, {task: dense[task] & ~other[task] for task in dense})
    other_only = share(gained, {task: ~dense[task] & other[task] for task in dense})
    if dense_only is None or other_only is None:
        return {}
    found = {
        ALONE: dense_only,
        OTHERS: other_only,
        CONTROL: dense_only.less(other_only),
        OWN: dense_only.less(other_only, 2.0),
    }
    return {name: figure.interval() for name, figure in found.items()}


def mean_of(values: Tables, among: Tables) -> float | None:
    """Of the documents in `among` the mean of `values`, [documents] or [runs, documents], as of `share`."""
    figure = share({task: np.atleast_2d(table) for task, table in values.items()}, among)
    return None if figure is None else figure.value


def _gained(before: Tables, after: Tables) -> dict[str, np.ndarray]:
    return {task: np.asarray(table, float) - before[task] for task, table in after.items()}


def _within(found: Interval) -> Interval:
    """A share's interval, which ends where shares do."""
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))
