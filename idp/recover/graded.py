"""Fits a selector to graded outcomes: how right each prompt is on documents that the run does not evaluate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from idp.config import Selector as Options
    from idp.models import LoadedModel
    from idp.prompting.prefix import Prefixes
    from idp.prompting.selectors.base import Selector


@dataclass(frozen=True)
class Documents:
    """Documents as a selector sees them, and how each prompt answers them.

    Args:
        contexts: token ids of each, as they are read where prompts are chosen.
        outcomes: [documents, prompts], the probability of the right choice behind each prompt, of 0 to 1.
        tasks: of each, the name of its task.
    """

    contexts: list[list[int]]
    outcomes: torch.Tensor
    tasks: list[str]


@dataclass(frozen=True)
class GradedOutcomes:
    """Each prompt's scores on the tasks that a selector learns from, which are made when they are first needed.

    Args:
        keys: of those scores, in the order of prompts and tasks: all that decides them.
        gather: makes what is not there; called before there is a model of the caller's in memory.
        read: the documents with their outcomes, given the model and the bank's prefixes; called once they are there.
    """

    keys: list[str]
    gather: Callable[[], None]
    read: Callable[[LoadedModel, Prefixes], Documents]


def fit(options: Options, loaded: LoadedModel, prefixes: Prefixes, documents: Documents) -> tuple[Selector, dict]:
    """A selector fitted to all documents, and what is said of the fit, in probabilities of the right choice.

    `chosen_outcome` is that of what it chooses on the documents that it was fitted to; `_unseen` was fitted to one half
    of them and tried on the other, `_other_tasks` to all tasks but one and tried on that. `best_outcome_...` is that of
    the prompt which was best on the documents of the fit: what a choice must beat.

    Args:
        options: the selector's.
        loaded: the model.
        prefixes: of the bank.
        documents: two at least.
    """
    contexts, outcomes = documents.contexts, documents.outcomes.double()
    everything = list(range(len(contexts)))

    def fitted(rows: Sequence[int]) -> Selector:
        selector = options.build()
        selector.bind(loaded.model, prefixes)
        selector.fit([contexts[row] for row in rows], 1 - outcomes[rows])
        return selector

    def chosen(selector: Selector, rows: Sequence[int]) -> torch.Tensor:
        return outcomes[rows].gather(1, choices(selector, [contexts[row] for row in rows])[:, None])[:, 0]

    selector = fitted(everything)
    mean = outcomes.mean(0)
    described: dict[str, Any] = {
        "kind": options.kind,
        "added": selector.added,
        "trainable": selector.trainable,
        "documents": len(contexts),
        "tasks": {task: documents.tasks.count(task) for task in dict.fromkeys(documents.tasks)},
        "outcome": mean.tolist(),
        "chosen_outcome": float(chosen(selector, everything).mean()),
        "random_outcome": float(mean.mean()),
        "oracle_outcome": float(outcomes.max(1).values.mean()),
    }
    for name, parts in _splits(documents.tasks).items():
        router, best = 0.0, 0.0
        for part in parts:
            rest = sorted(set(everything) - set(part))
            router += float(chosen(fitted(rest), part).sum())
            best += float(outcomes[part, int(outcomes[rest].mean(0).argmax())].sum())
        described[f"chosen_outcome_{name}"] = router / len(contexts)
        described[f"best_outcome_{name}"] = best / len(contexts)
    return selector, described


def choices(selector: Selector, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
    """The prompts that a fitted selector chooses, [contexts]."""
    import torch

    found = []
    with torch.inference_mode():
        for start in range(0, len(contexts), 32):
            found.append(selector.scores(contexts[start : start + 32]).argmax(1).cpu())
    return torch.cat(found)


def _splits(tasks: Sequence[str]) -> dict[str, list[list[int]]]:
    """The parts on which a selector is tried that was fitted to the others, by what they show; each has documents of
    the others' kind to be fitted to, two at least."""
    rows, names = range(len(tasks)), list(dict.fromkeys(tasks))
    found = {"unseen": [list(rows[0::2]), list(rows[1::2])]} if len(tasks) >= 4 else {}
    by_task = [[row for row in rows if tasks[row] == name] for name in names]
    if len(names) > 1 and all(len(tasks) - len(part) >= 2 for part in by_task):
        found["other_tasks"] = by_task
    return found
