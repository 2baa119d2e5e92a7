"""Prompt i trained on cluster i of the training text: k-means over text embeddings of the model itself.

A block's text embedding is the mean of its final hidden states. Each of its numbers is standardised over the blocks:
a few rogue dimensions would else decide every distance (Timkey and van Schijndel, 2109.04404).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Optional

from idp import config
from idp.beginning import begun
from idp.config import option
from idp.errors import UserError
from idp.models import LoadedModel
from idp.progress import progress
from idp.recover.checkpoint import load_checkpoint, save_checkpoint
from idp.recover.context import RepairContext, RepairResult
from idp.recover.tuning import tune_each

if TYPE_CHECKING:
    import torch

    from idp.recover.idp import Idp

log = logging.getLogger(__name__)


@dataclass
class ClusterBank(config.Bank):
    trains_each: ClassVar[bool] = True

    blocks: Optional[int] = option("training blocks that are embedded and clustered at most; null: all", minimum=1)
    restarts: int = option("starts of k-means, of which the best is kept", minimum=1)
    smallest: float = option(
        "a cluster with fewer blocks than this share of an equal one is filled up with the nearest of the others",
        minimum=0.0,
        maximum=1.0,
    )

    @property
    def shares(self) -> bool:
        return True

    def centred(self, prompts: int, training: config.Training) -> bool:
        return True

    def judged(self, prompts: int) -> int:
        return 1  # each sequence by the prompt of its cluster

    def also_read(self, prompts: int, training: config.Training) -> int:
        blocks = training.steps * training.batch_size * prompts
        return min(self.blocks or blocks, blocks) + training.heldout_sequences

    def make(self, recovery: Idp, context: RepairContext) -> RepairResult:
        """Clusters the training blocks, and trains each prompt on its cluster alone.

        The best state of prompt i is chosen on those held-out blocks that fall to its cluster. The bank's centres are
        the clusters' mean input embeddings, [prompts, hidden_size].
        """
        blocks, heldout = context.text[0][: self.blocks], context.text[1]
        prompts = len(recovery.lengths)
        if len(blocks) < prompts:
            raise UserError(
                f"recovery/bank=cluster: {len(blocks)} training blocks cannot make {prompts} clusters; use a larger"
                " corpus, more recovery.training.steps, or fewer recovery.lengths"
            )
        found = _kept(
            context.checkpoint / "clusters", lambda: _cluster(context, recovery, self.restarts, blocks, heldout)
        )
        members = fill_up(found["labels"], found["distances"], self.smallest)
        judges = fill_up(found["heldout_distances"].argmin(1), found["heldout_distances"], 1 / max(len(heldout), 1))
        texts = [(blocks[indices], heldout[judge]) for indices, judge in zip(members, judges, strict=True)]
        made = tune_each(recovery, recovery.lengths, texts, context)
        assert made.bank is not None
        texts = begun(blocks, context.beginning.ahead_of_text)  # as a selector will read them
        made.bank.centres = centres(context.loaded, [texts[indices] for indices in members])
        counts = found["labels"].bincount(minlength=prompts).tolist()
        made.bank.made = {"kind": "cluster", "clusters": counts, "blocks": [len(indices) for indices in members]}
        return made


def text_embeddings(loaded: LoadedModel, blocks: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Mean final hidden state of each block's tokens, [blocks, hidden_size] float32 on the CPU; a BOS is only read."""
    import torch

    found = []
    with torch.inference_mode(), progress(len(blocks), "text embeddings", unit="blocks") as bar:
        for start in range(0, len(blocks), batch_size):
            batch = begun(blocks[start : start + batch_size], loaded.bos).to(loaded.device)
            hidden = loaded.model.base_model(input_ids=batch, use_cache=False).last_hidden_state
            found.append(hidden[:, len(loaded.bos) :].float().mean(1).cpu())
            bar.update(len(batch))
    return torch.cat(found)


def centres(loaded: LoadedModel, texts: list[torch.Tensor]) -> torch.Tensor:
    """Mean input embedding of each text's tokens, [texts, hidden_size] float32; a text is [blocks, tokens]."""
    import torch

    embeddings = loaded.model.get_input_embeddings()
    with torch.inference_mode():
        return torch.stack(
            [
                torch.stack([embeddings(block.to(loaded.device)).float().mean(0).cpu() for block in text]).mean(0)
                for text in texts
            ]
        )


def k_means(points: torch.Tensor, clusters: int, restarts: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels [points] and centres [clusters, numbers] of the best of several starts, drawn from `seed`."""
    import warnings

    import torch
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    model = KMeans(clusters, n_init=restarts, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters: some stay empty
        labels = model.fit_predict(points.double().numpy())
    return torch.from_numpy(labels).long(), torch.from_numpy(model.cluster_centers_).float()


def fill_up(labels: torch.Tensor, distances: torch.Tensor, smallest: float) -> list[torch.Tensor]:
    """Each cluster's blocks; one with too few is given the nearest of the others as well, which keep them too.

    Args:
        labels: [blocks], each one's cluster.
        distances: [blocks, clusters], to the clusters' centres.
        smallest: of an equal share: what each cluster gets at least; one block in any case.
    """
    import torch

    clusters = distances.shape[1]
    wanted = max(1, math.ceil(smallest * len(labels) / clusters))
    members = []
    for cluster in range(clusters):
        indices = (labels == cluster).nonzero().flatten()
        if len(indices) < wanted:
            log.warning("cluster %d has %d of %d blocks: filled up to %d", cluster, len(indices), len(labels), wanted)
            nearest = distances[:, cluster].argsort(stable=True)
            others = nearest[~torch.isin(nearest, indices)]
            indices = torch.cat([indices, others[: wanted - len(indices)]]).sort().values
        members.append(indices)
    return members


def _cluster(
    context: RepairContext, recovery: Idp, restarts: int, blocks: torch.Tensor, heldout: torch.Tensor
) -> dict[str, torch.Tensor]:
    import torch

    batch_size = recovery.training.batch_size
    points = text_embeddings(context.loaded, blocks, batch_size)
    mean, deviation = points.mean(0), points.std(0, correction=0).clamp_min(1e-6)
    points = (points - mean) / deviation
    labels, middles = k_means(points, len(recovery.lengths), restarts, context.seed)
    apart = (text_embeddings(context.loaded, heldout, batch_size) - mean) / deviation
    return {
        "labels": labels,
        "distances": torch.cdist(points, middles),
        "heldout_distances": torch.cdist(apart, middles),
    }


def _kept(folder: Path, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What `compute` gives, from where a killed run left it."""
    if (found := load_checkpoint(folder)) is not None:
        return found[0]
    tensors = compute()
    save_checkpoint(folder, "clusters", tensors)
    return tensors
