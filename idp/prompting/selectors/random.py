"""A control: a prompt at random, the same one whenever the same input comes with the same seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from idp import config
from idp.config import SEEDS, option
from idp.prompting.selectors.base import Selector

if TYPE_CHECKING:
    import torch


@dataclass
class RandomSelector(config.Selector):
    graded: ClassVar[bool] = False

    seed: int = option("the choice for an input depends on this and on the input alone", minimum=0, maximum=SEEDS)

    @property
    def reads_layers(self) -> int:
        return 0

    def build(self) -> Random:
        return Random(self.seed)


class Random(Selector):
    """Each prompt with probability 1/m, drawn from a hash of the seed and the input's tokens.

    Args:
        seed: another seed, another draw.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def scores(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        import torch
        from torch.nn.functional import one_hot

        m = len(self.prefixes.lengths)
        drawn = [self._number(context) % m for context in contexts]
        return one_hot(torch.tensor(drawn, device=self.prefixes.lengths.device), m).float()

    def _number(self, context: Sequence[int]) -> int:
        text = json.dumps([self.seed, *map(int, context)])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
