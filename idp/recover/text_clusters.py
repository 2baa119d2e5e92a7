"""Kinds of text: k-means over the mean final hidden states of a model, each of whose numbers is standardised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idp.recover.banks.cluster import fill_up, k_means

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TextClusters:
    """Clusters of some text, and what tells which of them other text is nearest to.

    Attributes:
        members: of each cluster the blocks' numbers; a block is in several where one was filled up.
        distances: [blocks, clusters] of any text, [blocks, tokens], to the clusters' centres.
        smallest: a cluster with fewer blocks than this share of an equal one is filled up with the nearest of others.
    """

    members: list[torch.Tensor]
    distances: Callable[[torch.Tensor], torch.Tensor]
    smallest: float

    @classmethod
    def find(
        cls,
        text: torch.Tensor,
        embed: Callable[[torch.Tensor], torch.Tensor],
        count: int,
        *,
        restarts: int,
        smallest: float,
        seed: int,
    ) -> TextClusters:
        """Those of `text`, [blocks, tokens]; `embed` gives a text's embeddings [blocks, numbers], `seed` draws k-means'
        starts. One cluster is all text, and nothing is embedded."""
        import torch

        if count == 1:
            return cls([torch.arange(len(text))], lambda other: torch.zeros(len(other), 1), smallest)
        points = embed(text)
        mean, deviation = points.mean(0), points.std(0, correction=0).clamp_min(1e-6)
        labels, centres = k_means((points - mean) / deviation, count, restarts, seed)

        def distances(points: torch.Tensor) -> torch.Tensor:
            return torch.cdist((points - mean) / deviation, centres)

        return cls(fill_up(labels, distances(points), smallest), lambda other: distances(embed(other)), smallest)

    def shared_out(self, train: torch.Tensor, heldout: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of each cluster the training and the held-out blocks that are nearest to it, one of each at least."""
        found = []
        for text, smallest in ((train, self.smallest), (heldout, 1 / max(len(heldout), 1))):
            distances = self.distances(text)
            found.append([text[own] for own in fill_up(distances.argmin(1), distances, smallest)])
        return list(zip(*found, strict=True))
