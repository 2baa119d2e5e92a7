"""Fidelity: how far each model is from the dense one in what it predicts, on running text and on the tasks' contexts.

Perplexity and accuracy both miss it: a model may keep either and still say other things. What the dense model predicts
is kept once per corpus and task (`reference/` in the store); each other model is held against it (`fidelity/`).
On text this is the forward pass of the perplexity itself, which is then read from what that pass left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from idp.errors import UserError
from idp.evaluate import contexts
from idp.evaluate.divergence import TOP, Ask, Keep, Kept, Watched, figures
from idp.evaluate.measured import Fidelity, Stored
from idp.evaluate.tails import DRAWN
from idp.store import CHECKPOINT, Identity, Product, Store, write_json

if TYPE_CHECKING:
    import torch

    from idp.evaluate.measured import Measured
    from idp.evaluate.scorer import Scorer

VERSION = 1
REFERENCE, FIDELITY, DIVERGENCES = "reference.safetensors", "fidelity.json", "divergences.safetensors"
WINDOWS = "windows.json"
TEXT_POSITIONS = 65_536  # at most, in evenly spaced windows; with 128 tokens each they are a file of 67 MB
FIGURES = ("mean_kl", "median_kl", "p99_kl", "same_top", "tokens", "stderr")


def references(dense: Measured[Stored]) -> Fidelity[Stored]:
    """What the dense model predicts, which others are held against."""
    assert dense.fidelity is not None  # kept wherever others are compared with it
    return dense.fidelity


@dataclass(frozen=True)
class Side:
    """One model's side of the comparison: what its products are, before there are any.

    Args:
        name: dense, compressed or repaired.
        parent: the key of the compressed model or of the repair.
        conditions: what decides its numbers beside text and tasks, as part of each product's key.
        dense: products or identities of the dense model's scores; None: this is the dense model.
    """

    name: str
    parent: str
    conditions: dict[str, Any]
    dense: Measured[Any] | None

    def of_corpus(self, corpus: str, config: dict[str, Any]) -> Identity:
        """The product of a corpus, of whose windows `config` decides."""
        reference = references(self.dense).corpora[corpus] if self.dense else None
        return self._identity(f"text of {corpus}", reference, {**config, "positions": TEXT_POSITIONS})

    def of_task(self, task: str, scores: str) -> Identity:
        """The product of a task's contexts; `scores` is the key of what this model scored on the task."""
        reference = references(self.dense).tasks[task] if self.dense else None
        documents = scores if self.dense is None else self.dense.tasks[task].key
        return self._identity(f"contexts of {task}", reference, {"contexts": documents, "bounds": contexts.bounds()})

    def _identity(self, what: str, reference: Product | Identity | None, config: dict[str, Any]) -> Identity:
        """Of the dense model a reference, of another one its divergences from `reference`."""
        kept = {**config, "kept": [TOP, DRAWN]} if reference is None else {"reference": reference.key}
        stage = "reference" if reference is None else "fidelity"
        return Identity(stage, self.parent, kept | self.conditions, VERSION, f"{self.name} {what}")


@dataclass
class Comparing:
    """One model's part in the comparison, made.

    Args:
        name: dense, compressed or repaired.
        parent: the key of the compressed model or of the repair.
        conditions: what decides its numbers beside text and tasks, as part of each product's key.
        scorer: opens the model, if it is not open yet.
        store: where products live.
        dense: what was measured of the dense model; None: this is the dense model.
    """

    name: str
    parent: str
    conditions: dict[str, Any]
    scorer: Callable[[], Scorer]
    store: Store
    dense: Measured[Product] | None

    def of_corpus(self, corpus: str, config: dict[str, Any], windows: Callable[[Scorer], torch.Tensor]) -> Product:
        """The product of a corpus, which also holds the losses of all windows.

        Args:
            corpus: its name.
            config: what decides its windows, as part of the key.
            windows: cuts them, [windows, tokens].
        """
        return self._product(
            self._side.of_corpus(corpus, config),
            references(self.dense).corpora[corpus] if self.dense else None,
            lambda scorer, reference, folder: _corpus(scorer, windows(scorer), reference, folder),
        )

    def of_task(self, task: str, measured: Product) -> Product:
        """The product of a task's contexts; `measured` is what this model scored on the task."""
        dense = measured if self.dense is None else self.dense.tasks[task]
        return self._product(
            self._side.of_task(task, measured.key),
            references(self.dense).tasks[task] if self.dense else None,
            lambda scorer, reference, folder: _task(scorer, dense, reference, folder),
        )

    @property
    def _side(self) -> Side:
        return Side(self.name, self.parent, self.conditions, self.dense)

    def _product(
        self,
        identity: Identity,
        reference: Product | None,
        make: Callable[[Scorer, Reference | None, Path], None],
    ) -> Product:
        def made(folder: Path) -> None:
            from idp.evaluate.journal import Journal

            scorer = self.scorer()
            scorer.label, scorer.journal = identity.label, Journal(folder / CHECKPOINT)
            make(scorer, Reference.load(reference) if reference is not None else None, folder)

        return self.store.obtain(identity, made)


@dataclass
class Reference:
    """What the dense model predicts.

    Args:
        kept: its distributions at all positions.
        tokens: [positions] int32, the token read at each.
        rows: [rows] int32, the numbers of the windows or documents that they belong to, ascending.
        counts: [rows] int32, how many positions each has.
    """

    kept: Kept
    tokens: np.ndarray
    rows: np.ndarray
    counts: np.ndarray

    @staticmethod
    def load(product: Product) -> Reference:
        """From its product."""
        kept, more = Kept.load(product.path / REFERENCE)
        return Reference(kept, **more)

    def save(self, folder: Path) -> None:
        """Into a product, with what it is of in words."""
        self.kept.save(folder / REFERENCE, tokens=self.tokens, rows=self.rows, counts=self.counts)
        top, tokens = self.kept.top, self.kept.ids.shape[1]
        about = {"vocabulary": self.kept.vocabulary, "top": top, "drawn": tokens - top, "mass": self.kept.mass}
        write_json(folder / "reference.json", about | {"positions": len(self.kept)})

    def ends(self, tokens: Sequence[Sequence[int]]) -> list[Kept]:
        """The kept distributions of each row, those of its last positions where the other model has fewer.

        Args:
            tokens: of each row, what the other model reads at its positions.

        Raises:
            UserError: it reads something else there.
        """
        found = []
        for stop, count, row in zip(self.counts.cumsum(), self.counts, tokens, strict=True):
            shown = min(count, len(row))
            part = slice(stop - shown, stop)
            # A single position may be that of an empty context, where each model reads its own token.
            if count > 1 and self.tokens[part].tolist() != list(row[len(row) - shown :]):
                raise UserError(
                    "evaluation.fidelity: a model reads other tokens of a text than the dense one does, by its own"
                    " tokenizer or by recovery.bos; use evaluation.fidelity=false"
                )
            found.append(self.kept[part])
        return found


def _corpus(scorer: Scorer, windows: torch.Tensor, reference: Reference | None, folder: Path) -> None:
    from idp.evaluate.perplexity import window_losses
    from idp.tasks.tasks import document_indices

    places = windows.shape[1] - 1
    if reference is None:
        numbers = document_indices(len(windows), max(1, TEXT_POSITIONS // places))
    else:
        numbers = reference.rows.tolist()
    read = windows[numbers, :-1].tolist()
    asked: Sequence[Ask] = [Keep(number) for number in numbers] if reference is None else reference.ends(read)
    asks = dict(zip(numbers, asked, strict=True))
    watched = Watched([asks.get(number) for number in range(len(windows))])
    write_json(folder / WINDOWS, window_losses(scorer, windows, watched))
    _write([watched.found[number] for number in numbers], numbers, read, reference, folder)


def _task(scorer: Scorer, dense: Product, reference: Reference | None, folder: Path) -> None:
    documents = contexts.documents(dense)
    if reference is None:
        texts = contexts.affordable([contexts.tokens(scorer, document) for document in documents])
    else:
        texts = {number: contexts.tokens(scorer, documents[number]) for number in reference.rows.tolist()}
    counts = [contexts.positions(scorer, text) for text in texts.values()]
    if reference is not None:
        counts = [min(pair) for pair in zip(counts, reference.counts.tolist(), strict=True)]
    read = [text[len(text) - count :] for text, count in zip(texts.values(), counts, strict=True)]
    asks: Sequence[Ask] = [Keep(number) for number in texts] if reference is None else reference.ends(read)
    watched = Watched(list(asks))
    scorer.watch_contexts(list(texts.values()), counts, watched)
    _write(watched.found, list(texts), read, reference, folder)


def _write(
    found: list[Any], numbers: list[int], read: list[list[int]], reference: Reference | None, folder: Path
) -> None:
    """What was found of each row: a reference, or divergences and what is said of them."""
    from safetensors.numpy import save_file

    counts = [len(tokens) for tokens in read]
    if reference is None:
        tokens = np.array([token for row in read for token in row], np.int32)
        kept = Kept.joined([Kept.decoded(row) for row in found])
        Reference(kept, tokens, np.array(numbers, np.int32), np.array(counts, np.int32)).save(folder)
        return
    kl, same = (np.concatenate([row[name] for row in found]) for name in ("kl", "same"))
    last = np.cumsum(counts) - 1
    write_json(
        folder / FIDELITY,
        {
            **figures(kl, same, counts),
            "mass": reference.kept.mass,
            "last": figures(kl[last], same[last], [1] * len(counts)),
        },
    )
    arrays = {"kl": kl.astype(np.float32), "same": same, "rows": np.array(numbers, np.int32)}
    save_file(arrays | {"counts": np.array(counts, np.int32)}, folder / DIVERGENCES)


def recorded(measured: dict[str, Measured]) -> dict[str, Any] | None:
    """The record's `fidelity`: of every model but the dense one, what it says of each text and each task.

    `texts`: {corpus: figures}, `tasks`: {task: figures, `flips`}; figures as `divergence.figures` gives them, in nats
    per token, with `mass`, the share of the dense model's probability that lies on its most likely tokens, and in a
    task `last`: the same at the last position of each context alone. A choice by the labels has no distribution of its
    own: its figures are None, and only its flips are counted. None where nothing was kept of a dense model.
    """
    dense = measured.get("dense")
    if dense is None or dense.fidelity is None:
        return None
    nothing = dict.fromkeys(FIGURES)
    found = {}
    for name, row in measured.items():
        if row is dense:
            continue
        known = row.fidelity or Fidelity()
        tasks = {}
        for task, product in row.tasks.items():
            figures_of = known.tasks[task].read(FIDELITY) if task in known.tasks else nothing
            tasks[task] = {**figures_of, "flips": flips(dense.tasks[task], product)}
        texts = {corpus: _of_text(product) for corpus, product in known.corpora.items()}
        found[name] = {"texts": texts, "tasks": tasks}
    return found


def _of_text(product: Product) -> dict[str, Any]:
    return {name: value for name, value in product.read(FIDELITY).items() if name != "last"}


def flips(dense: Product, other: Product) -> dict[str, int] | None:
    """How many documents another model turned from right to wrong and from wrong to right, and of how many.

    None where the task's main metric does not call a document right or wrong.

    Args:
        dense: what the dense model scored on a task.
        other: what the other model did, on the same documents.
    """
    before, after = (_right(product) for product in (dense, other))
    if before is None or after is None:
        return None
    if before.keys() != after.keys():
        raise ValueError("models were measured on different documents")
    pairs = [(before[document], after[document]) for document in before]
    return {
        "right_to_wrong": pairs.count((True, False)),
        "wrong_to_right": pairs.count((False, True)),
        "documents": len(pairs),
    }


def _right(product: Product) -> dict[int, bool] | None:
    """Whether each document, by its index in the split, was right by the task's main metric."""
    from pyarrow import parquet

    from idp.records.scores import main_metric

    results = product.read("results.json")
    ((runs, scores),) = results["results"].items()
    metric = main_metric(runs, scores)
    table = parquet.read_table(product.path / "samples.parquet")
    if f"metric:{metric}" not in table.column_names:
        return None
    values = table[f"metric:{metric}"].to_pylist()
    if not set(values) <= {0.0, 1.0}:
        return None
    higher = results["higher_is_better"][runs].get(metric.split(",")[0]) is not False
    return {
        document: bool(value) is higher for document, value in zip(table["doc_id"].to_pylist(), values, strict=True)
    }
