"""From scoring requests to rows that go through the model once, and from rows to batches.

A document's choices share its context: the row holds the context once (the trunk), then each choice as a branch that
sees the trunk and itself, at the positions that it would have if it were alone.

    tokens     c c c c | a a a | b b         positions  0 1 2 3 | 4 5 6 | 4 5
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from idp.prompting.repaired import right_padded

if TYPE_CHECKING:
    import torch

TRUNK, PADDING = 0, -1
EFFICIENT = 8  # a batch of an eighth of the budget runs about as fast per token as a full one


@dataclass
class Request:
    """One log-likelihood to find: of the `continuation` tokens behind the `context` tokens, which is not empty."""

    context: list[int]
    continuation: list[int]


@dataclass
class Row:
    """A trunk and its branches as one sequence, and which places predict which tokens of which request."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)  # TRUNK, or the number of the branch
    reads: list[int] = field(default_factory=list)  # what a selector may read
    places: list[int] = field(default_factory=list)  # for each target: the place in the row that predicts it
    targets: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)  # for each target: the request it belongs to


def make_row(requests: Sequence[Request], numbers: Sequence[int], reads: list[int]) -> Row:
    """One row for requests that share the beginning of their text.

    Args:
        requests: the choices of one document; their contexts may differ, as WinoGrande's do.
        numbers: the number by which each request's result is known.
        reads: the tokens that a selector may read: what the contexts share.
    """
    inputs = [(request.context + request.continuation)[:-1] for request in requests]
    shared = common_length(inputs)
    row = Row(inputs[0][:shared], list(range(shared)), [TRUNK] * shared, reads)
    for branch, (request, tokens, number) in enumerate(zip(requests, inputs, numbers, strict=True), start=1):
        start = len(row.tokens)
        row.tokens += tokens[shared:]
        row.positions += range(shared, len(tokens))
        row.branches += [branch] * (len(tokens) - shared)
        for index, target in enumerate(request.continuation, start=len(request.context) - 1):
            row.places.append(index if index < shared else start + index - shared)
            row.targets.append(target)
            row.owners.append(number)
    return row


def common_length(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with in common."""
    shortest, longest = min(sequences), max(sequences)  # in dictionary order: what these two share, all do
    for index, (one, other) in enumerate(zip(shortest, longest, strict=False)):
        if one != other:
            return index
    return min(len(shortest), len(longest))


def plan(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Batches of row numbers: longest rows first, each at most `batch_tokens` with its padding, or a single row.

    The plan depends on the lengths and the budget alone, so a resumed task goes through the same batches.
    """
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        if batches:
            count, width = len(batches[-1]), lengths[batches[-1][0]]  # sorted: a batch's first row is its longest
            fits = (count + 1) * width <= batch_tokens
            # A batch that is large enough to be efficient takes no row that would be a fifth padding or more.
            padded = count * width >= batch_tokens // EFFICIENT and lengths[number] < 0.8 * width
            if fits and not padded:
                batches[-1].append(number)
                continue
        batches.append([number])
    return batches


@dataclass
class Batch:
    """Rows as tensors.

    `tokens` and `positions` are [rows, width], `visible` [rows, width, width]; `places`, `targets` and `owners` are
    [targets], places being indices into the flattened tokens.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    visible: torch.Tensor
    places: torch.Tensor
    targets: torch.Tensor
    owners: list[int]
    reads: list[list[int]]


def collate(rows: Sequence[Row], device: torch.device) -> Batch:
    """Pads rows on the right and builds the mask by which branches do not see one another."""
    import torch

    tokens, lengths = right_padded([row.tokens for row in rows], device)
    positions, _ = right_padded([row.positions for row in rows], device)
    branches, _ = right_padded([row.branches for row in rows], device)
    width = tokens.shape[1]
    index = torch.arange(width, device=device)
    branches = branches.masked_fill(index >= lengths[:, None], PADDING)
    same = branches[:, :, None] == branches[:, None, :]
    trunk = (branches == TRUNK)[:, None, :]
    visible = (same | trunk) & (index[:, None] >= index)  # padding sees itself, so that no softmax is empty
    offsets = [number * width for number, row in enumerate(rows) for _ in row.places]
    places = [place for row in rows for place in row.places]
    return Batch(
        tokens,
        positions,
        visible,
        torch.tensor(places, device=device) + torch.tensor(offsets, device=device),
        torch.tensor([target for row in rows for target in row.targets], device=device),
        [owner for row in rows for owner in row.owners],
        [row.reads for row in rows],
    )
