"""Simulated studies of repairs that bring knowledge back and of impostors: what the claim check says of each.

    python -m tests.analyze.impostors                        # the table of docs/analysis.md
    python -m tests.analyze.impostors 50 100                 # fewer studies, of 100 documents a task alone

A document has an ease that every model shares, and something that each dense model knows of it for itself; a model has
it right where skill, ease, knowledge and noise sum to more than 0. Nine tasks, of different difficulty.
"""

from __future__ import annotations

import sys

import numpy as np

from idp.analyze import fate
from idp.analyze.evidence import NOT_SUPPORTED, SUPPORTED
from idp.analyze.restored import Effect, judge
from idp.stats.significance import paired_interval

SKILLS = np.linspace(-1, 1, 9)
NOISE, MARGIN = 0.6, 0.01
KINDS = {  # whether the repair brings back what this dense model knew
    "knowledge back": True,
    "heavy damage, knowledge back": True,
    "nothing": False,
    "all documents alike": False,
    "easy documents": False,
    "heavy damage, easy documents": False,
    "heavy damage, another model that never saw dense": False,
}


def study(kind: str, documents: int, draw: np.random.Generator) -> list[dict[str, np.ndarray]]:
    """Which documents dense, second dense, compressed and repaired model have right, of each task [documents]."""
    models: list[dict[str, np.ndarray]] = [{}, {}, {}, {}]
    for task, skill in enumerate(SKILLS):
        ease, knows, others = draw.normal(0, 1, (3, documents))
        noise = draw.normal(0, NOISE, (4, documents))
        compressed = skill - 0.6 + ease + 0.6 * knows + noise[2]
        mixed = 0.7 * noise[2] + 0.7 * noise[3]
        if kind.startswith("heavy"):
            compressed = skill - 0.8 + 0.3 * ease + 0.1 * knows + noise[2]
        repaired = {
            "knowledge back": skill - 0.3 + ease + 0.9 * knows + mixed,
            "heavy damage, knowledge back": skill - 0.5 + 0.6 * ease + 0.6 * knows + mixed,
            "nothing": skill - 0.6 + ease + 0.6 * knows + noise[3],
            "all documents alike": compressed + 0.3 + 0.3 * noise[3],
            "easy documents": skill - 0.3 + 1.3 * ease + 0.6 * knows + mixed,
            "heavy damage, easy documents": skill - 0.5 + 0.8 * ease + 0.1 * knows + mixed,
            "heavy damage, another model that never saw dense": skill
            - 0.6
            + ease
            + draw.normal(0, 1, documents)
            + mixed,
        }[kind]
        dense, second = skill + ease + knows + noise[0], skill + ease + others + noise[1]
        for model, score in zip(models, (dense, second, compressed, repaired), strict=True):
            model[str(task)] = score > 0
    return models


def judged(models: list[dict[str, np.ndarray]], control: bool) -> tuple[str, float]:
    """The verdict on one study by itself, and the figure that it stands on."""
    dense, second, compressed, repaired = models
    after = {task: right[None] for task, right in repaired.items()}
    effect = Effect(
        lost=_difference(dense, compressed),
        whole=_difference(compressed, repaired),
        shares=fate.fates(dense, compressed, after),
        control=fate.controlled(dense, second, compressed, after) if control else {},
        documents=sum(map(len, dense.values())),
    )
    evidence = judge(effect, MARGIN, "")
    return evidence.verdict, evidence.value


def rates(kind: str, documents: int, studies: int, control: bool = True, seed: int = 5) -> dict[str, float]:
    """How often a repair of that kind is `supported` and `not supported`, and the mean figure."""
    draw = np.random.default_rng(seed)
    found = [judged(study(kind, documents, draw), control) for _ in range(studies)]
    said = {verdict: sum(each == verdict for each, _ in found) / studies for verdict in (SUPPORTED, NOT_SUPPORTED)}
    return said | {"figure": float(np.mean([figure for _, figure in found]))}


def _difference(before: dict[str, np.ndarray], after: dict[str, np.ndarray]):
    return paired_interval({task: (before[task][None].astype(float), after[task][None]) for task in before})


def main(studies: int, sizes: list[int]) -> None:
    """Prints the table."""
    from tabulate import tabulate

    rows = []
    for kind in KINDS:
        for documents in sizes:
            found = rates(kind, documents, studies)
            without = rates(kind, documents, studies, control=False)
            rows.append(
                [
                    kind,
                    documents,
                    f"{100 * found['figure']:+.1f}",
                    *(f"{100 * found[verdict]:.0f} %" for verdict in (SUPPORTED, NOT_SUPPORTED)),
                    f"{100 * without['figure']:+.1f}",
                    f"{100 * without[SUPPORTED]:.0f} %",
                ]
            )
    headers = ["repair", "documents a task", "difference (points)", "supported", "not supported"]
    headers += ["without a second model: gain on known", "supported"]
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main(int((sys.argv[1:2] or ["60"])[0]), [int(size) for size in sys.argv[2:]] or [100, 500])
