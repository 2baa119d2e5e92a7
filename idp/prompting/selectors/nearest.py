"""The prompt whose kind of text is nearest to the input: mean input embedding to cluster centres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idp import config
from idp.prompting.embedding import mean_embeddings
from idp.prompting.selectors.base import Selector

if TYPE_CHECKING:
    import torch


@dataclass
class NearestSelector(config.Selector):
    @property
    def fits(self) -> bool:
        return True

    @property
    def takes_centres(self) -> bool:
        return True

    @property
    def reads_layers(self) -> int:
        return 0

    def build(self) -> Nearest:
        return Nearest()


class Nearest(Selector):
    """`s_i = -||e(x) - c_i||^2`, where e is the mean input embedding and c_i the centre of prompt i's text.

    A bank made by cluster brings its centres. For any other, `fit` takes as c_i the mean embedding of the held-out
    contexts on whose blocks prompt i has the least loss; a prompt that is best on none has no centre (infinitely far)
    and is never chosen.
    """

    def fit(self, contexts: Sequence[Sequence[int]], losses: torch.Tensor) -> None:
        import torch

        embedded, best = mean_embeddings(self.model, contexts).double().cpu(), losses.cpu().argmin(1)
        centres = torch.full((losses.shape[1], embedded.shape[1]), torch.inf)
        for prompt in best.unique().tolist():
            centres[prompt] = embedded[best == prompt].mean(0).float()
        self.restore({"centres": centres})

    def state(self) -> dict[str, torch.Tensor]:
        return {"centres": self.centres}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.centres = state["centres"].float()

    @property
    def unit(self) -> float:
        """The mean squared distance between two centres; 1 where they are one."""
        there = self.centres[self.centres.isfinite().all(1)].double()
        apart = (there[:, None] - there).square().sum(-1)
        pairs = len(there) * (len(there) - 1)
        return float(apart.sum()) / pairs if pairs and bool(apart.any()) else 1.0

    @property
    def added(self) -> int:
        return self.centres.numel()

    def scores(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        embedded = mean_embeddings(self.model, contexts)
        # The difference itself: a product of norms would make infinity less infinity of a centre that is not there.
        return -(embedded[:, None, :] - self.centres.to(embedded.device)).square().sum(-1)
