"""A text as one vector: the mean of its tokens' input embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def mean_embeddings(model: PreTrainedModel, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Mean input embedding of each context, as the model's layers get them, [contexts, hidden_size] float32.

    A context's mean does not depend on the other contexts; that of no tokens is zero.

    Args:
        model: the model; only its embedding is run.
        contexts: token ids of each.
    """
    import torch

    embeddings = model.get_input_embeddings()
    device = embeddings.weight.device
    flat = torch.tensor([token for context in contexts for token in context], dtype=torch.long, device=device)
    sizes = torch.tensor([len(context) for context in contexts], device=device)
    with torch.no_grad():
        embedded = embeddings(flat).float()
        sums = torch.segment_reduce(embedded, "sum", lengths=sizes, axis=0)
    return sums / sizes.clamp(min=1)[:, None]
