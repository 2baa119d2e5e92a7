"""The prompt under which the input itself is likeliest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idp import config
from idp.prompting.attention.group import TRUNK
from idp.prompting.packing import Packed, pack
from idp.prompting.repaired import head_is_bare, logits_at
from idp.prompting.selectors.base import Selector

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from idp.prompting.prefix import Prefixes

TOGETHER = 2**14  # tokens of a forward pass, those of all prompts counted


@dataclass
class LikelihoodSelector(config.Selector):
    @property
    def passes(self) -> int:
        return 1

    def build(self) -> Likelihood:
        return Likelihood()


class Likelihood(Selector):
    """`s_i = mean over tokens t of log p(x_t | prompt i, x_<t)`, over the input's tokens but the first.

    All prompts are tried in one forward pass over m copies of the input, packed without padding.
    """

    def bind(self, model: PreTrainedModel, prefixes: Prefixes) -> None:
        super().bind(model, prefixes)
        self.bare = head_is_bare(model)

    def scores(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        return log_probabilities(self.model, self.prefixes, contexts, self.bare)


def log_probabilities(
    model: PreTrainedModel, prefixes: Prefixes, contexts: Sequence[Sequence[int]], bare: bool
) -> torch.Tensor:
    """Mean log-probability of each text behind each prompt, nats per token, [contexts, prompts] float32.

    The first token of a text is not predicted: what a prompt makes of no text at all is no matter of the text's. A
    text of one token scores 0 under every prompt. The BOS that a text begins with, where the prefixes say so, is read
    and counts for nothing.

    Args:
        model: the model.
        prefixes: the prompts.
        contexts: token ids of each text.
        bare: what `head_is_bare` says of the model.
    """
    import torch

    m = len(prefixes.lengths)
    found = [_of_part(model, prefixes, part, bare) for part in together(contexts, m)]
    return torch.cat(found) if found else torch.empty(0, m)


def together(contexts: Sequence[Sequence[int]], prompts: int) -> Iterator[list[list[int]]]:
    """Contexts of which as many copies as there are prompts go through the model together."""
    size = 0
    part: list[list[int]] = []
    for context in contexts:
        if part and size + prompts * len(context) > TOGETHER:
            yield part
            part, size = [], 0
        part.append(list(context))
        size += prompts * len(context)
    if part:
        yield part


def copies(model: PreTrainedModel, prefixes: Prefixes, contexts: list[list[int]]) -> tuple[list[list[int]], Packed]:
    """A copy of each context behind each prompt, those of the first prompt first: the rows, and as one sequence."""
    m = len(prefixes.lengths)
    rows = contexts * m
    packed = pack(
        rows,
        [range(len(row)) for row in rows],
        [[TRUNK] * len(row) for row in rows],
        [prompt for prompt in range(m) for _ in contexts],
        prefixes,
        model,
        prefixes.lengths.device,
    )
    return rows, packed


def _of_part(model: PreTrainedModel, prefixes: Prefixes, contexts: list[list[int]], bare: bool) -> torch.Tensor:
    import torch
    from torch.nn.functional import cross_entropy

    m, device = len(prefixes.lengths), prefixes.lengths.device
    rows, packed = copies(model, prefixes, contexts)
    bos = prefixes.beginning.ahead_of_text
    firsts = [len(bos) if bos and row[: len(bos)] == bos else 0 for row in rows]
    predicted = [max(len(row) - first - 1, 0) for row, first in zip(rows, firsts, strict=True)]
    places = [
        start + first + place
        for start, first, count in zip(packed.starts, firsts, predicted, strict=True)
        for place in range(count)
    ]
    targets = torch.tensor(
        [token for row, first in zip(rows, firsts, strict=True) for token in row[first + 1 :]],
        dtype=torch.long,
        device=device,
    )
    values = torch.empty(len(places), device=device)
    if places:
        with torch.inference_mode():
            for start, logits in logits_at(model, packed, torch.tensor(places), prefixes, bare):
                part = slice(start, start + len(logits))
                values[part] = -cross_entropy(logits.float(), targets[part], reduction="none")
    counts = torch.tensor(predicted, device=device)
    sums = torch.segment_reduce(values.double(), "sum", lengths=counts, axis=0)
    return (sums / counts.clamp(min=1)).float().view(m, len(contexts)).t()
