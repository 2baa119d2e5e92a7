"""Rows of different lengths, branches and prefixes, end to end as one sequence, and the groups that attend together.

Rows of about one length behind prefixes of one length make a group:

    tokens  | a a a a a | b b b b b | c c c | d d |       groups  {a, b} behind prompts 0 and 2, {c, d} behind prompt 1
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idp.prompting.attention.group import PADDING, Group
from idp.prompting.attention.sequences import Divided, divide
from idp.prompting.frequencies import switch_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from idp.prompting.prefix import Prefixes

SNUG = 0.75  # a row joins a group if it fills this share of the group's width
FEW = 8  # or if the group is this small
CPU_SCORES, GPU_SCORES = 2**21, 2**27  # attention scores of a group: what a CPU's cache holds, what a GPU's memory does


@dataclass
class Packed:
    """Rows end to end: `tokens` and `positions` are [1, tokens], `starts` where each row begins, in the order given.

    `long` [1, tokens] says which tokens belong to inputs beyond the length at which the model's rotary frequencies
    change; None where they do not.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    starts: list[int]
    groups: list[Group]
    long: torch.Tensor | None = None

    @functools.cached_property
    def divided(self) -> Divided:
        """The same rows as variable-length attention takes them."""
        return divide(self.groups)


def pack(
    tokens: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    branches: Sequence[Sequence[int]],
    choice: Sequence[int] | None,
    prefixes: Prefixes | None,
    model: PreTrainedModel,
    device: torch.device,
    long: bool | None = None,
) -> Packed:
    """Rows as one sequence and its groups.

    Args:
        tokens: each row's token ids.
        positions: each row's positions, from 0 at the start of the input.
        branches: for each token `TRUNK`, or the number of its branch.
        choice: the prefix that each row follows; None for none.
        prefixes: those prefixes.
        model: the model, for `in_groups`.
        device: where the packed sequence goes.
        long: whether all rows belong to inputs beyond the length at which rotary frequencies change; None: each says
            so by its own length.
    """
    import torch

    lengths = [len(row) for row in tokens]
    before = [0] * len(tokens)
    if choice is not None:
        assert prefixes is not None  # they are what was chosen among
        before = prefixes.lengths[torch.tensor(choice)].tolist()
    switch = switch_of(model.config)
    is_long = [
        switch is not None and (offset + max(places, default=0) >= switch if long is None else long)
        for offset, places in zip(before, positions, strict=True)
    ]
    if choice is not None and prefixes is not None and any(is_long):
        choice = [prefixes.row(prompt, beyond) for prompt, beyond in zip(choice, is_long, strict=True)]
    flat: list[int] = []
    shifted: list[int] = []
    far: list[bool] = []
    starts, groups = [0] * len(tokens), []
    for members in in_groups(lengths, before, model, device):
        start, width, offset = len(flat), lengths[members[0]], before[members[0]]
        places = torch.zeros(len(members), width, dtype=torch.long)
        kinds = torch.full((len(members), width), PADDING)
        for number, row in enumerate(members):
            starts[row] = len(flat)
            flat += tokens[row]
            far += [is_long[row]] * lengths[row]
            shifted += (moved := [position + offset for position in positions[row]])
            places[number, : lengths[row]] = torch.tensor(moved)
            kinds[number, : lengths[row]] = torch.tensor(branches[row])
        prefix = None if choice is None else torch.tensor([choice[row] for row in members])
        groups.append(Group(start, len(flat), prefix, offset, places, kinds))
    beyond = torch.tensor([far], device=device) if switch is not None else None
    return Packed(torch.tensor([flat], device=device), torch.tensor([shifted], device=device), starts, groups, beyond)


def in_groups(
    lengths: Sequence[int], before: Sequence[int], model: PreTrainedModel, device: torch.device
) -> list[list[int]]:
    """Rows that attend together: of about one length, behind prefixes of one length, and not too many.

    Args:
        lengths: of the rows, in tokens.
        before: of the prefix of each row, in tokens.
        model: its number of heads decides how many rows are too many.
        device: of the model.

    Returns:
        the rows' numbers; in each group the longest row comes first.
    """
    import torch

    heads = model.config.get_text_config().num_attention_heads
    scores = (CPU_SCORES if torch.device(device).type == "cpu" else GPU_SCORES) // heads
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (before[row], -lengths[row], row)):
        if groups:
            group = groups[-1]
            width = lengths[group[0]]
            fits = (len(group) + 1) * width * (width + before[row]) <= scores
            near = len(group) < FEW or lengths[row] >= SNUG * width
            if fits and near and before[row] == before[group[0]]:
                group.append(row)
                continue
        groups.append([row])
    return groups
