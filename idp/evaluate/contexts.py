"""The contexts of a task's documents, as they were scored, whose ends are compared between models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from idp.beginning import Beginning

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from idp.evaluate.engine import Engine
    from idp.evaluate.scorer import Scorer
    from idp.store import Product

# Of a task's documents every fifth, from 2 to 32 of them; tokens of all their contexts; and the last ones of each.
SHARE, FEW, DOCUMENTS, TOKENS, POSITIONS = 5, 2, 32, 4096, 32


def bounds() -> list[int]:
    """What bounds the contexts, for a key."""
    return [SHARE, FEW, DOCUMENTS, TOKENS, POSITIONS]


@dataclass
class Document:
    """A document as it was scored.

    Args:
        context: what all its choices share, with the examples before it.
        choices: the continuations that were scored behind it; none where text was generated.
        new_tokens: the most that may be generated; None where nothing is.
        whole: it is a text that is scored as a whole, its only choice, with no context.
    """

    context: str
    choices: list[str]
    new_tokens: int | None
    whole: bool


def documents(measured: Product) -> list[Document]:
    """What was scored of a task, from its product."""
    from pyarrow import parquet

    from idp.models import greedy
    from idp.tasks.tasks import LONGEST_ANSWER

    ((task, about),) = measured.read("results.json")["configs"].items()
    kind, new_tokens = about["output_type"], None
    if kind == "generate_until":
        new_tokens = greedy.options(task, about.get("generation_kwargs") or {}, LONGEST_ANSWER)["max_gen_toks"]
    table = parquet.read_table(measured.path / "samples.parquet", columns=["context", "choices"])
    whole = kind == "loglikelihood_rolling"
    return [
        Document(*_with_context(row["context"], list(row["choices"] or [])), new_tokens, whole)
        for row in table.to_pylist()
    ]


def _with_context(context: str, choices: list[str]) -> tuple[str, list[str]]:
    """The context and the choices of a document whose choices were scored once behind it and once by themselves.

    Mutual information (`acc_mutual_info`) does so; what all of its requests share is then nothing.
    """
    half = len(choices) // 2
    conditional, unconditional = choices[:half], choices[half:]
    if context or not half or len(choices) % 2 or not all(map(str.endswith, conditional, unconditional)):
        return context, choices
    contexts = {text[: len(text) - len(choice)] for text, choice in zip(conditional, unconditional, strict=True)}
    return (contexts.pop(), unconditional) if len(contexts) == 1 else (context, choices)


def tokens(scorer: Scorer, document: Document) -> list[int]:
    """Token ids of a document's context as the scorer reads it; of a text without one, the text's own beginning."""
    if document.whole:
        beginning = scorer.own_tokens(document.choices[0])[:POSITIONS]
        return [*scorer.bos, *beginning] or scorer.shared_context("", [])
    if document.new_tokens is not None:
        return scorer.generation_context(document.context, document.new_tokens)
    return scorer.shared_context(document.context, document.choices)


@dataclass
class _Unasked:
    """What a scorer reads of an `Engine` before it asks it anything."""

    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig
    longest_prompt: int
    beginning: Beginning
    prompts: tuple[str, ...] = ()
    not_followed: tuple[str, ...] = ()


def reader(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, longest_prompt: int, beginning: Beginning
) -> Scorer:
    """A scorer that cuts texts into tokens, and has no model to score them with.

    Args:
        tokenizer: the model's.
        config: the model's, for its window.
        longest_prompt: tokens ahead of a text, as of an `Engine`.
        beginning: what every text begins with.
    """
    from idp.evaluate.scorer import Scorer

    return Scorer(cast("Engine", _Unasked(tokenizer, config, longest_prompt, beginning)), batch_tokens=1)


def affordable(texts: Sequence[list[int]]) -> dict[int, list[int]]:
    """Evenly spaced ones of all contexts, by their numbers, as many as the bounds allow, and one at least."""
    from idp.tasks.tasks import document_indices

    for count in range(min(DOCUMENTS, max(len(texts) // SHARE, FEW), len(texts)), 0, -1):
        found = {number: texts[number] for number in document_indices(len(texts), count)}
        if sum(map(len, found.values())) <= TOKENS:
            break
    return found


def positions(scorer: Scorer, text: list[int]) -> int:
    """How many positions of a context are compared: its last tokens, but for its BOS.

    An empty context is read as a token that stands in for it: that is its one position.
    """
    ahead = len(scorer.bos) if text[: len(scorer.bos)] == scorer.bos else 0
    return min(max(len(text) - ahead, 1), POSITIONS)
