"""The first prompt for short inputs, the last one for long ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idp import config
from idp.config import option
from idp.prompting.selectors.base import Selector

if TYPE_CHECKING:
    import torch


@dataclass
class ByLengthSelector(config.Selector):
    tokens: int = option("inputs of so many tokens or fewer are short", minimum=1)

    def build(self) -> ByLength:
        return ByLength(self.tokens)


class ByLength(Selector):
    def __init__(self, tokens: int):
        self.tokens = tokens

    def scores(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        import torch

        lengths = self.prefixes.lengths  # [prompts]
        scores = torch.zeros(len(contexts), len(lengths), device=lengths.device)
        for row, context in enumerate(contexts):
            scores[row, 0 if len(context) <= self.tokens else -1] = 1.0
        return scores
