"""What a selector is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from idp.prompting.prefix import Prefixes


class Selector(ABC):
    """Scores the prompts of a bank for each input; the highest score is chosen.

    With a `temperature` no prompt is chosen: the input follows the mean of all of them, with the weights
    softmax(scores / (temperature * unit)).
    """

    temperature: float | None = None

    def bind(self, model: PreTrainedModel, prefixes: Prefixes) -> None:
        """Called once, before any scoring, with the model and the bank's prefixes."""
        self.model, self.prefixes = model, prefixes

    @abstractmethod
    def scores(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Each prompt's score for each context, [contexts, prompts], whatever the other contexts are.

        Args:
            contexts: token ids of each.
        """

    def fit(self, contexts: Sequence[Sequence[int]], losses: torch.Tensor) -> None:  # noqa: B027
        """Learns from held-out text or outcomes, once bound; a selector that has nothing to learn leaves it alone.

        Args:
            contexts: token ids of the beginnings of held-out blocks, at least two; or of documents' contexts.
            losses: [contexts, prompts], each block's loss behind each prompt, in nats per token; or 1 less the
                probability of a document's right choice, of one that needs OUTCOMES.
        """

    def state(self) -> dict[str, torch.Tensor]:
        """What `fit` found, on the CPU, for `restore`; empty where there is nothing."""
        return {}

    def described(self) -> dict[str, Any]:
        """What the record says of what `fit` found, in plain values, beside what it says of every fit."""
        return {}

    def restore(self, state: dict[str, torch.Tensor]) -> None:  # noqa: B027
        """Takes what another's `state` gave; called before or after `bind`.

        Raises:
            KeyError: a tensor is missing.
        """

    @property
    def unit(self) -> float:
        """What a temperature of 1 is in its scores, once it is bound and fitted."""
        return 1.0

    @property
    def added(self) -> int:
        """Numbers that the selector needs beside the prompts."""
        return 0

    @property
    def trainable(self) -> int:
        """Those of them that were trained by gradients."""
        return 0
