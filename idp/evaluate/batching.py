"""From scoring requests to rows that go through the model once, and from rows to batches.

A document's choices share its context: the row holds the context once (the trunk), then each choice as a branch that
sees the trunk and itself, at the positions that it would have if it were alone.

    tokens     c c c c | a a a | b b         positions  0 1 2 3 | 4 5 6 | 4 5
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from idp.prompting.attention.group import TRUNK


@dataclass
class Request:
    """One log-likelihood to find: of the `continuation` tokens behind the `context` tokens, which is not empty."""

    context: list[int]
    continuation: list[int]


@dataclass
class PackedRow:
    """A trunk and its branches as one sequence, and which places predict which tokens of which request."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)  # TRUNK, or the number of the branch
    reads: list[int] = field(default_factory=list)  # what a selector may read
    places: list[int] = field(default_factory=list)  # for each target: the place in the row that predicts it
    targets: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)  # for each target: the request it belongs to

    def behind(self, shared: list[int]) -> PackedRow:
        """The same row with tokens at its beginning that it did not repeat."""
        size = len(shared)
        return replace(
            self,
            tokens=shared + self.tokens,
            positions=[*range(size), *(position + size for position in self.positions)],
            branches=[TRUNK] * size + self.branches,
            places=[place + size for place in self.places],
        )


def make_row(requests: Sequence[Request], numbers: Sequence[int], reads: list[int]) -> PackedRow:
    """One row for requests that share the beginning of their text.

    Args:
        requests: the choices of one document; their contexts may differ, as WinoGrande's do.
        numbers: the number by which each request's result is known.
        reads: the tokens that a selector may read: what the contexts share.
    """
    inputs = [(request.context + request.continuation)[:-1] for request in requests]
    shared = common_length(inputs)
    row = PackedRow(inputs[0][:shared], list(range(shared)), [TRUNK] * shared, reads)
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


def split_at(rows: Sequence[PackedRow], limits: Sequence[int]) -> tuple[list[PackedRow], list[int], list[int]]:
    """Rows whose requests are all longer than a limit or none; those with both become two.

    Args:
        rows: the rows.
        limits: of each row, in tokens.

    Returns:
        the rows; for each the number of the one that it comes from; and for each target of the given rows, in order,
        its place among the targets of the new ones.
    """
    found: list[PackedRow] = []
    sources: list[int] = []
    order: list[int] = []
    made = 0
    for number, (row, limit) in enumerate(zip(rows, limits, strict=True)):
        length: dict[int, int] = {}  # of each request's input: its last target is predicted by its last token
        for place, owner in zip(row.places, row.owners, strict=True):
            length[owner] = max(length.get(owner, 0), row.positions[place] + 1)
        sides = [[owner for owner in length if (length[owner] > limit) is far] for far in (False, True)]
        parts = [_of_owners(row, set(owners)) for owners in sides if owners] if all(sides) else [row]
        place_of = {}
        for part in parts:
            found.append(part)
            sources.append(number)
            seen: dict[int, int] = {}
            for owner in part.owners:
                seen[owner] = seen.get(owner, -1) + 1
                place_of[owner, seen[owner]] = made
                made += 1
        seen = {}
        for owner in row.owners:
            seen[owner] = seen.get(owner, -1) + 1
            order.append(place_of[owner, seen[owner]])
    return found, sources, order


def _of_owners(row: PackedRow, owners: set[int]) -> PackedRow:
    """The trunk of a row, and the branches and targets of some of its requests."""
    mine = [index for index, owner in enumerate(row.owners) if owner in owners]
    branches = {row.branches[row.places[index]] for index in mine} | {TRUNK}
    kept = [place for place, branch in enumerate(row.branches) if branch in branches]
    moved = {place: index for index, place in enumerate(kept)}
    return PackedRow(
        [row.tokens[place] for place in kept],
        [row.positions[place] for place in kept],
        [row.branches[place] for place in kept],
        row.reads,
        [moved[row.places[index]] for index in mine],
        [row.targets[index] for index in mine],
        [row.owners[index] for index in mine],
    )


def common_length(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with in common."""
    texts = cast("Sequence[list[int]]", sequences)
    shortest, longest = min(texts), max(texts)  # in dictionary order: what these two share, all do
    for index, (one, other) in enumerate(zip(shortest, longest, strict=False)):
        if one != other:
            return index
    return min(len(shortest), len(longest))


def plan(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Batches of row numbers, longest rows first, each of at most `batch_tokens` tokens, or a single row.

    The plan depends on the lengths and the budget alone, so a resumed task goes through the same batches.
    """
    batches: list[list[int]] = []
    room = 0
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        if not batches or lengths[number] > room:
            batches.append([])
            room = batch_tokens
        batches[-1].append(number)
        room -= lengths[number]
    return batches
