"""The scores of a choice among prompts, composed of those that each prompt has by itself on the same documents.

A document whose prompt has been chosen is scored behind that prompt alone, and answered behind it alone: so its
log-likelihoods and its text are those that were found when the prompt was measured by itself. Only the choice is made
anew, of the batches in which it would be made while scoring, and lm-eval makes its metrics of the answers. In half
precision a document's log-likelihoods may differ from those of scoring by how it was batched, as they do between any
two batches. What cannot be composed is scored: whole texts that are scored in windows, each behind a prompt of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM

from idp.evaluate.batching import PackedRow
from idp.evaluate.benchmark import SAMPLES
from idp.evaluate.engine import Engine
from idp.evaluate.fidelity import WINDOWS
from idp.evaluate.scorer import WINDOW, Scorer
from idp.evaluate.written import write_corpus, write_scored

if TYPE_CHECKING:
    import torch
    from lm_eval.api.instance import Instance

    from idp.evaluate.divergence import Ask
    from idp.store import Product
    from idp.tasks.tasks import TaskSource


def compose_task(
    opened: Callable[[], Scorer], source: TaskSource, documents: int | None, products: Sequence[Product], folder: Path
) -> None:
    """Writes a task's product, as scoring would, but for the tokens that were run.

    Args:
        opened: the scorer of the model with its bank and selector; opens it, if it is not open yet.
        source: the task, one that is `composable`.
        documents: how many of it; None: the whole split.
        products: what each prompt scored by itself, in the bank's order.
        folder: of the product.
    """
    from pyarrow import parquet

    from idp.tasks.tasks import run_task

    chooser = _chooser(opened())
    chooser.label = f"{chooser.name} {source.runs}"
    answered = Answered(chooser, [parquet.read_table(product.path / SAMPLES).to_pylist() for product in products])
    results, rows = run_task(answered, source, documents)
    write_scored(folder, chooser, source, results, rows)


def compose_corpus(
    opened: Callable[[], Scorer],
    cut: Callable[[Scorer], torch.Tensor],
    products: Sequence[Product],
    window: int,
    folder: Path,
) -> None:
    """Writes a corpus's product: each window's loss is that of the prompt that is chosen for the window.

    Args:
        opened: as of `compose_task`.
        cut: the windows of the text, [windows, tokens].
        products: what each prompt scored by itself, in the bank's order.
        window: tokens of one.
        folder: of the product.
    """
    from idp.evaluate.perplexity import window_losses

    chooser, losses = _chooser(opened()), [product.read(WINDOWS) for product in products]
    count = len(window_losses(chooser, cut(chooser)))
    if any(len(each) != count for each in losses):
        raise ValueError("prompts were measured on different windows")
    write_corpus(folder, [losses[chooser.choices[WINDOW, number]][number] for number in range(count)], window)


def _chooser(scorer: Scorer) -> Scorer:
    """A scorer over the same model that only chooses. It keeps no journal: that is for what was scored."""
    return Scorer(Choosing(scorer.engine), scorer.batch_tokens, scorer.name)


class Choosing:
    """An engine that chooses a prompt for each row or context, and neither scores nor generates anything."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.config, self.tokenizer, self.prompts = engine.config, engine.tokenizer, engine.prompts
        self.longest_prompt, self.beginning = engine.longest_prompt, engine.beginning
        self.not_followed = engine.not_followed

    def score(
        self, batches: Sequence[Sequence[PackedRow]], shared: list[int], asks: Sequence[Sequence[Ask]] | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, choice in self.choose([[shared + row.reads for row in batch] for batch in batches]):
            targets = sum(len(row.targets) for row in batches[number])
            yield number, {"values": [0.0] * targets, "hits": [True] * targets, "choice": choice, "tokens": 0}

    def generate(
        self, batches: Sequence[list[list[int]]], stops: list[str], max_new_tokens: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, choice in self.choose(batches):
            yield number, {"texts": [""] * len(choice), "choice": choice, "tokens": 0}

    def choose(self, batches: Sequence[list[list[int]]]) -> Iterator[tuple[int, list[int | None]]]:
        return self.engine.choose(batches)

    def close(self) -> None:
        """Nothing to end: the engine is another's."""


class Answered(LM):
    """lm-eval's `LM` of answers that are there: of each document those of the prompt that is chosen for it.

    Args:
        chooser: chooses; see `Choosing`.
        rows: of each prompt, its documents' rows as `idp.tasks.rows.of_documents` makes them, in the split's order.
    """

    def __init__(self, chooser: Scorer, rows: Sequence[list[dict[str, Any]]]):
        super().__init__()
        self.chooser, self.rows = chooser, rows
        if len({tuple(row["doc_hash"] for row in each) for each in rows}) != 1:
            raise ValueError("prompts were measured on different documents")

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.chooser.loglikelihood(requests, disable_tqdm)
        rows = [(self._row(request), request.idx) for request in requests]
        return [(row["loglikelihoods"][number], row["greedy"][number]) for row, number in rows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        self.chooser.generate_until(requests, disable_tqdm)
        return [self._row(request)["generation"] for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError("whole texts have no single prompt: they are scored (`benchmark.composable`)")

    def _row(self, request: Instance) -> dict[str, Any]:
        """Its document's row; one of whose choices no token is scored has no prompt, and is the same behind any."""
        prompt = self.chooser.choices.get((request.task_name, request.doc_id), 0)
        return self.rows[prompt][request.doc_id]
