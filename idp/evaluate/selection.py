"""What choosing among prompts is worth: statistics over the outcomes of each prompt alone on the same documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from idp.stats.bootstrap import RESAMPLES, resampled_means

if TYPE_CHECKING:
    from pathlib import Path

    from idp.evaluate.measured import Measured
    from idp.store import Product
    from idp.tasks.tasks import TaskSource

COLLAPSED = 0.95  # share of a task's documents that were given one prompt
OUTCOMES = "selection.parquet"


def entropy(counts: Sequence[int]) -> dict[str, float]:
    """Entropy of how often each prompt was chosen: `nats`, and `share` of that of an even choice, from 0 to 1."""
    shares = np.array([count for count in counts if count], dtype=float) / max(sum(counts), 1)
    nats = max(0.0, float(-(shares * np.log(shares)).sum()))
    return {"nats": nats, "share": nats / math.log(len(counts)) if len(counts) > 1 else 0.0}


def collapsed(selection: dict[str, dict[str, int]], share: float = COLLAPSED) -> list[str]:
    """The tasks of which one prompt of several was given at least `share` of the documents.

    Args:
        selection: of each task, how many documents were given each prompt.
        share: see above.
    """
    return [
        task
        for task, counts in selection.items()
        if len(counts) > 1 and any(counts.values()) and max(counts.values()) >= share * sum(counts.values())
    ]


def of_task(scores: np.ndarray, chosen: np.ndarray, best: int, worst: int, higher: bool = True) -> dict[str, Any]:
    """What each way to choose scores on one task.

    Args:
        scores: [documents, prompts], the main metric of each document behind each prompt.
        chosen: [documents], the prompt that the selector chose.
        best: the prompt with the least loss on held-out text.
        worst: that with the greatest.
        higher: whether a higher score is better.

    Returns:
        means over documents: of each of `prompts`, of `best` and `worst`, of `random` choice (exactly its expectation),
        of the `oracle` that takes each document's best prompt after the fact, of what was `chosen`; `agreement`, the
        share of documents on which the chosen prompt scores as well as the oracle; `gap`, by how much chosen beats
        random.
    """
    top = scores.max(1) if higher else scores.min(1)
    taken = scores[np.arange(len(scores)), chosen]
    each = scores.mean(0)
    return {
        "documents": len(scores),
        "prompts": each.tolist(),
        "best": float(each[best]),
        "worst": float(each[worst]),
        "random": float(scores.mean()),
        "oracle": float(top.mean()),
        "chosen": float(taken.mean()),
        "agreement": float((taken == top).mean()),
        "gap": float(gaps(scores, chosen, higher).mean()),
    }


def gaps(scores: np.ndarray, chosen: np.ndarray, higher: bool = True) -> np.ndarray:
    """By how much the chosen prompt beats the expectation of a random one, [documents]; below 0 where it is worse."""
    difference = scores[np.arange(len(scores)), chosen] - scores.mean(1)
    return difference if higher else -difference


def interval(parts: Sequence[np.ndarray], seed: int, resamples: int = RESAMPLES) -> list[float]:
    """95 % percentile interval of the mean over tasks of the mean over documents, by bootstrap over documents.

    Each resample draws every task's documents anew, with replacement, as many as there are.

    Args:
        parts: of each task, a paired difference per document.
        seed: of the draws.
        resamples: how many.
    """
    columns = [np.asarray(values)[:, None] for values in parts]
    means = resampled_means(columns, np.random.default_rng(seed), resamples)
    low, high = np.percentile(means, [2.5, 97.5])
    return [float(low), float(high)]


def controls(
    final: Measured,
    per_prompt: Sequence[Measured],
    sources: Sequence[TaskSource],
    heldout_loss: Sequence[float] | None,
    seed: int,
) -> dict[str, Any]:
    """What each way to choose scores, per task and as the mean over tasks; perplexity beside it.

    All of it comes from the outcomes of each prompt alone, those of the selector's choice included, so that every
    comparison is paired; in half precision a document's score may differ from the run's own by how it was batched.

    Args:
        final: what the run's own model scored; only its choices are read, and its windows' losses.
        per_prompt: what each prompt scored by itself, in order.
        sources: the tasks.
        heldout_loss: of each prompt, nats per token: it names the best and the worst, which are left out without it.
        seed: of the bootstrap.

    Returns:
        of each of `tasks`, and as their `mean`, what `of_task` gives, and what luck explains of the oracle
        (`idp.stats.luck`): `oracle_by_luck`, what it would score over equal prompts, and `beyond_luck` with its
        95 % interval, what there is to choose; of a task also the `flips` and the model of luck. `perplexity` has
        `oracle_by_luck` as well.
    """
    m = len(per_prompt)
    loss = np.array(heldout_loss if heldout_loss is not None else range(m))
    best, worst = int(loss.argmin()), int(loss.argmax())
    tasks, parts, outcomes_of = {}, [], []
    for source in sources:
        found = outcomes(final.tasks[source.name], [each.tasks[source.name] for each in per_prompt], source.runs)
        if found is None:
            continue
        metric, higher, _, scores, chosen = found
        known = chosen >= 0
        parts.append(gaps(scores[known], chosen[known], higher))
        tasks[source.name] = {"metric": metric, **of_task(scores[known], chosen[known], best, worst, higher)}
        tasks[source.name]["gap_interval"] = interval(parts[-1:], seed)
        outcomes_of.append(greater(scores[known], higher))
    beyond = _add_luck(tasks, outcomes_of, seed)
    result: dict[str, Any] = {
        "prompts": [each.name for each in per_prompt],
        "heldout_loss": list(heldout_loss) if heldout_loss is not None else None,
        "tasks": tasks,
        "mean": None,
        "perplexity": _perplexities(final, per_prompt, best, worst),
    }
    if tasks:
        names = ("best", "worst", "random", "oracle", "oracle_by_luck", "beyond_luck", "chosen", "agreement", "gap")
        mean = {name: float(np.mean([task[name] for task in tasks.values()])) for name in names}
        mean["prompts"] = np.mean([task["prompts"] for task in tasks.values()], axis=0).tolist()
        intervals = {"gap_interval": interval(parts, seed), "beyond_luck_interval": interval(beyond, seed)}
        result["mean"] = {"tasks": len(tasks), **mean, **intervals}
    if heldout_loss is None:
        for node in [*tasks.values(), result["mean"] or {}, *result["perplexity"].values()]:
            for name in ("best", "worst"):
                node.pop(name, None)
    return result


def greater(scores: np.ndarray, higher: bool = True) -> np.ndarray:
    """Scores of which the greater is the better: those of hits stay hits, others are turned round where need be."""
    if higher:
        return scores
    return 1 - scores if np.isin(scores, (0, 1)).all() else -scores


def luck_phrase(controls: dict[str, Any] | None) -> str | None:
    """A run's oracle beside that of equal prompts, in a phrase; None where its controls do not tell them apart."""
    mean = (controls or {}).get("mean")
    if not mean or "oracle_by_luck" not in mean:
        return None
    low, high = mean["beyond_luck_interval"]
    return (
        f"an oracle over equal prompts would score {mean['oracle_by_luck']:.3f}; beyond that"
        f" {mean['beyond_luck']:+.3f} ({low:+.3f} to {high:+.3f}), which is what there is to choose"
    )


def _add_luck(tasks: dict[str, dict[str, Any]], scores: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """Adds to each task's scores what luck explains of the oracle; gives each document's part of the rest."""
    from idp.stats.luck import luck

    beyond = []
    for task, found in zip(tasks.values(), luck(scores), strict=True):
        sign = 1 if task["oracle"] >= task["random"] else -1
        beyond.append(found.beyond)
        task["oracle_by_luck"] = task["random"] + sign * found.expected
        task["beyond_luck"] = found.lead - found.expected
        task["beyond_luck_interval"] = interval([found.beyond], seed)
        task["luck"] = {"flips": found.flips, "model": found.model}
    return beyond


def outcomes(
    final: Product, per_prompt: Sequence[Product], runs: str
) -> tuple[str, bool, list[int], np.ndarray, np.ndarray] | None:
    """One task's metric, whether higher is better, documents, scores [documents, prompts] and choices [documents].

    A document without a choice written down has -1. None where the main metric is not one of single documents.
    """
    from idp.records.scores import main_metric

    results = per_prompt[0].read("results.json")
    metric = main_metric(runs, results["results"][runs])
    tables = [_samples(product) for product in per_prompt]
    column = f"metric:{metric}"
    if any(column not in table.column_names for table in tables):
        return None
    documents = tables[0]["doc_id"].to_pylist()
    if any(table["doc_id"].to_pylist() != documents for table in tables):
        raise ValueError(f"{runs}: prompts were measured on different documents")
    scores = np.array([table[column].to_pylist() for table in tables], dtype=float).T
    mine = _samples(final)
    picked = dict(zip(mine["doc_id"].to_pylist(), mine["prompt"].to_pylist(), strict=True))
    chosen = np.array([-1 if picked.get(document) is None else picked[document] for document in documents])
    higher = results["higher_is_better"][runs].get(metric.split(",")[0])
    return metric, higher is not False, documents, scores, chosen


def write_outcomes(path: Path, final: Measured, per_prompt: Sequence[Measured], sources: Sequence[TaskSource]) -> None:
    """Every document's score behind each prompt, and which was chosen, as Parquet."""
    import pyarrow as arrow
    from pyarrow import parquet

    rows = []
    for source in sources:
        found = outcomes(final.tasks[source.name], [each.tasks[source.name] for each in per_prompt], source.runs)
        if found is None:
            continue
        metric, _, documents, scores, chosen = found
        for document, values, prompt in zip(documents, scores.tolist(), chosen.tolist(), strict=True):
            row = {"task": source.name, "doc_id": document, "metric": metric, "chosen": prompt if prompt >= 0 else None}
            rows.append(row | {each.name: value for each, value in zip(per_prompt, values, strict=True)})
    temporary = path.with_name(f".{path.name}.tmp")
    parquet.write_table(arrow.Table.from_pylist(rows), temporary)
    temporary.replace(path)


def _samples(product: Product) -> Any:
    from pyarrow import parquet

    return parquet.read_table(product.path / "samples.parquet")


def _perplexities(final: Measured, per_prompt: Sequence[Measured], best: int, worst: int) -> dict[str, Any]:
    found = {}
    for corpus, product in final.corpora.items():
        losses = np.array([each.corpora[corpus].read("windows.json") for each in per_prompt]).T  # [windows, prompts]
        each = np.exp(losses.mean(0))
        found[corpus] = {
            "prompts": each.tolist(),
            "best": float(each[best]),
            "worst": float(each[worst]),
            "random": float(np.exp(losses.mean())),
            "oracle": float(np.exp(losses.min(1).mean())),
            "oracle_by_luck": float(np.exp((losses.mean(1) - np.ptp(losses, axis=1) / 2).mean())),
            "chosen": product.read("perplexity.json")["perplexity"],
        }
    return found
