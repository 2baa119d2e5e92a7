"""The tables of simulated studies in docs/analysis.md: `python -m tests.analyze.simulations` makes them anew.

Studies are invented whose true difference is known: of each task documents of random difficulty, which a model has
right where its skill, its run's own luck and noise on that very document together exceed it. Every difference is then
tested as `idp.analyze` tests it. How often do intervals hold the truth, how often do tests find what is not there, and
how often what `detectable` says they find?
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from idp.stats.power import LEVEL, detectable
from idp.stats.variance import Paired, estimate

TASKS = 9
SKILLS = np.linspace(-1.0, 1.0, TASKS)  # from hard to easy tasks: 18 to 82 % right
NOISE = 0.3  # of each run on each document, where documents differ by 1: two models disagree on about 12 %
RUNS, SPREADS, DOCUMENTS = ((1, 1), (1, 3), (3, 3), (5, 5)), (0.0, 0.5, 1.0, 2.0), (100, 500)
GAIN = 2.0  # points
STUDIES = 1000  # of each design
DETECTABLE = 100  # studies of which it is computed


@dataclass(frozen=True)
class Design:
    """A kind of study: runs before and after, the spread between runs and the gain in points, documents of each task.

    A model before with one run is one that nothing trained: compressed, or dense. It has no spread.
    """

    runs: tuple[int, int]
    spread: float = 0.0
    documents: int = 100
    gain: float = 0.0


PLANNED = (
    Design((1, 1)),
    Design((1, 1), documents=500),
    Design((1, 3)),
    Design((1, 3), 0.5, 500),
    Design((3, 3)),
    Design((3, 3), 0.5, 500),
    Design((5, 5), 0.5, 500),
)


@dataclass(frozen=True)
class Found:
    """What a share of studies shows, and widths in points."""

    covers: float  # intervals that hold the true difference
    covers_seed: float  # that hold the true difference of the very runs that were made
    rejects: float  # studies with p < 0.05
    needed: float  # the width that holds the truth in 95 %, if the variance were known
    width: float  # mean
    median: float
    detectable: float  # median of the first studies


def simulate(design: Design, studies: int, seed: int = 0) -> Found:
    """Makes studies of one design and tests the difference in the mean over tasks of each."""
    digits = [*design.runs, design.documents, round(10 * design.spread), round(1000 * design.gain)]
    generator = np.random.default_rng([seed, *digits])
    shift, spread = _in_skill(design.gain), _in_skill(design.spread)
    truth = _accuracy(shift, NOISE**2 + spread**2) - _accuracy(0, NOISE**2 + (spread**2 if design.runs[0] > 1 else 0))
    rows = []
    for number in range(studies):
        luck = [
            generator.normal(0, spread, count) if count > 1 or side else np.zeros(1) for side, count in sides(design)
        ]
        study = _study(design, shift, luck, generator)
        found = estimate(study)
        low, high = found.interval(LEVEL)
        own = _accuracy(shift + luck[1], NOISE**2) - _accuracy(luck[0], NOISE**2)
        rows.append(
            (
                low <= truth <= high,
                low <= own <= high,
                found.two_sided() < LEVEL,
                100 * found.difference,
                100 * (high - low),
                100 * detectable(found) if number < DETECTABLE else np.nan,
            )
        )
    table = np.array(rows, float)
    covers, covers_seed, rejects = map(float, table[:, :3].mean(0))
    needed = 2 * 1.96 * table[:, 3].std(ddof=1)
    width, middle = table[:, 4].mean(), np.median(table[:, 4])
    return Found(
        covers, covers_seed, rejects, float(needed), float(width), float(middle), float(np.nanmedian(table[:, 5]))
    )


def sides(design: Design) -> Sequence[tuple[int, int]]:
    """Before (0) and after (1), each with its number of runs."""
    return tuple(enumerate(design.runs))


def _study(design: Design, shift: float, luck: Sequence[np.ndarray], generator: np.random.Generator) -> Paired:
    """Right (1) and wrong (0) of each task, [runs, documents] before and after."""
    ease = generator.standard_normal((TASKS, 1, design.documents), dtype=np.float32) + SKILLS[:, None, None]
    scores = []
    for side, count in sides(design):
        noise = NOISE * generator.standard_normal((TASKS, count, design.documents), dtype=np.float32)
        scores.append((ease + noise + luck[side][:, None] + shift * side > 0).astype(float))
    return {str(task): (scores[0][task], scores[1][task]) for task in range(TASKS)}


def _accuracy(shifts: float | np.ndarray, variance: float) -> float:
    """The mean over tasks (and over runs, if there are several shifts) of the share of documents that are right."""
    from scipy.special import ndtr

    return float(ndtr(np.add.outer(SKILLS, shifts) / (1 + variance) ** 0.5).mean())


def _in_skill(points: float) -> float:
    """The shift of skill that changes accuracy by so many points."""
    slope = (_accuracy(0.01, NOISE**2) - _accuracy(-0.01, NOISE**2)) / 0.02
    return points / 100 / slope


def coverage_table(studies: int) -> str:
    """Coverage, error of the first kind, and width, of every number of runs, spread and documents."""
    designs = itertools.product(RUNS, SPREADS, DOCUMENTS)
    headers = ["runs", "spread of runs", "documents", "coverage", "of these seeds", "type-I error", "power"]
    headers += ["width needed", "mean width", "median width"]
    return _table([coverage_row(Design(*design), studies) for design in designs], headers)


def coverage_row(design: Design, studies: int) -> list[str]:
    """Of one design: coverage over studies without a gain and with one, and the rest."""
    none, gain = simulate(design, studies), simulate(replace(design, gain=GAIN), studies)
    return [
        f"{design.runs[0]} / {design.runs[1]}",
        f"{design.spread:g}",
        str(design.documents),
        f"{(none.covers + gain.covers) / 2:.3f}",
        f"{(none.covers_seed + gain.covers_seed) / 2:.3f}",
        f"{none.rejects:.3f}",
        f"{gain.rejects:.2f}",
        f"{none.needed:.1f}",
        f"{none.width:.1f}",
        f"{none.median:.1f}",
    ]


def power_table(studies: int) -> str:
    """What comparisons say that they detect, and how often they do detect a gain of just that."""
    headers = ["runs", "spread of runs", "documents", "detectable", "detected"]
    return _table([power_row(design, studies) for design in PLANNED], headers)


def power_row(design: Design, studies: int) -> list[str]:
    """Of one design: the median of what studies without a gain say, and the share of studies that find such a gain."""
    said = simulate(design, studies).detectable
    found = simulate(replace(design, gain=said), studies).rejects
    runs = f"{design.runs[0]} / {design.runs[1]}"
    return [runs, f"{design.spread:g}", str(design.documents), f"{said:.2f}", f"{found:.2f}"]


def _table(rows: list[list[str]], headers: list[str]) -> str:
    from tabulate import tabulate

    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Coverage and power of intervals over simulated studies, as Markdown.")
    parser.add_argument("--studies", type=int, default=STUDIES, help="of each design, without a gain and with one")
    number = parser.parse_args().studies
    print(f"{coverage_table(number)}\n\n{power_table(number)}")
