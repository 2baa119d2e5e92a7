"""What a selector is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from idp.prompting.prefix import Prefixes


class Selector(ABC):
    """Scores the prompts of a bank for each input; the highest score is chosen."""

    def bind(self, model: PreTrainedModel, prefixes: Prefixes) -> None:
        """Called once, before any scoring, with the model and the bank's prefixes."""
        self.model, self.prefixes = model, prefixes

    @abstractmethod
    def scores(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Each prompt's score for each context, [contexts, prompts], whatever the other contexts are.

        Args:
            contexts: token ids of each.
        """
