"""A search space in Hydra's words for it: `interval(...)`, `range(...)`, `choice(...)`, `tag(log, ...)`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer

from idp.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Space = dict[str, "BaseDistribution"]


def read(params: Mapping[str, Any], arguments: Sequence[str], loader: Any = None) -> tuple[Space, list[str]]:
    """What is searched, by the option's name, and the words that are the same for every trial.

    Args:
        params: `hydra.sweeper.params`; a word of the command line takes the place of the one of its name.
        arguments: the command line's words.
        loader: Hydra's config loader, which `glob(...)` asks for the choices of a group.

    Raises:
        UserError: a range is empty, or cannot be searched logarithmically, or nothing is searched.
    """
    words = [*(f"{name}={value}" for name, value in params.items()), *arguments]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(words)
    last = {override.key_or_group: override for override in parsed}
    space = {each.get_key_element(): _distribution(each) for each in last.values() if each.is_sweep_override()}
    if not space:
        raise UserError("nothing is searched: give an option interval(...), range(...) or choice(...)")
    return space, [str(each.input_line) for each in last.values() if not each.is_sweep_override()]


def words(point: Mapping[str, Any]) -> list[str]:
    """The overrides that a point of the space stands for."""
    return [f"{name}={value}" for name, value in point.items()]


def grid(space: Space) -> tuple[int, Iterator[dict[str, Any]]]:
    """How many points a space of discrete options has, and the points, the last option varying fastest.

    Raises:
        UserError: an option is continuous.
    """
    axes = {name: _values(name, distribution) for name, distribution in space.items()}
    points = (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
    return math.prod(map(len, axes.values())), points


def ends(space: Space) -> list[dict[str, Any]]:
    """The points where every option has its first value, or the lowest, and its last or highest."""
    return [
        {name: d.choices[index] if hasattr(d, "choices") else (d.low, d.high)[index] for name, d in space.items()}
        for index in (0, -1)
    ]


def _distribution(override: Override) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    swept, line = override.value(), override.input_line
    try:
        if isinstance(swept, IntervalSweep):
            whole = isinstance(swept.start, int) and isinstance(swept.end, int)
            kind = IntDistribution if whole else FloatDistribution
            return kind(swept.start, swept.end, log="log" in swept.tags)
        if isinstance(swept, RangeSweep) and not swept.shuffle:
            first, last, step = _of_range(swept)
            whole = all(isinstance(each, int) for each in (swept.start, swept.stop, swept.step))
            kind = IntDistribution if whole else FloatDistribution
            return kind(first, last, step=step, log="log" in swept.tags)
        return CategoricalDistribution(list(override.sweep_iterator(transformer=Transformer.encode)))
    except ValueError as error:
        raise UserError(f"{line}: cannot be searched: {error}") from error


def _of_range(swept: RangeSweep) -> tuple[float, float, float]:
    """The lowest and the highest number of a range, which ends before its `stop`, and the step between them."""
    start, stop, step = swept.start, swept.stop, swept.step
    if start is None or stop is None or not step:
        raise ValueError("it has no start, no stop or no step")
    count = math.ceil(round((stop - start) / step, 9))
    if count < 1:
        raise ValueError("it is empty")
    other = start + (count - 1) * step
    return min(start, other), max(start, other), abs(step)


def _values(name: str, distribution: Any) -> list[Any]:
    if hasattr(distribution, "choices"):
        return list(distribution.choices)
    if distribution.step is None:
        raise UserError(f"{name}: a grid needs values to choose from: range(...) or choice(...) for interval(...)")
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    return [distribution.low + number * distribution.step for number in range(count)]
