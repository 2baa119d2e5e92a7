"""Rows of different lengths, branches and prefixes, end to end as one sequence, and the groups that attend together.

Rows of about one length behind prefixes of one length make a group:

    tokens  | a a a a a | b b b b b | c c c | d d |       groups  {a, b} behind prompts 0 and 2, {c, d} behind prompt 1
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from idp.prompting.frequencies import switch_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from idp.prompting.attention.sequences import Divided
    from idp.prompting.prefix import Prefixes

TRUNK, PADDING = 0, -1  # a token of branch 1, 2, ... sees the trunk and its own branch
SNUG = 0.75  # a row joins a group if it fills this share of the group's width
FEW = 8  # or if the group is this small
VECTOR = 64  # bytes: a softmax over rows that are no whole number of a CPU's vectors takes twice as long
CPU_SCORES, GPU_SCORES = 2**21, 2**27  # attention scores of a group: what a CPU's cache holds, what a GPU's memory does


@dataclass
class Group:
    """Rows of about one length behind prefixes of one length.

    Args:
        start: of its tokens in the packed sequence, which are those up to `stop`.
        stop: see `start`.
        prefix: [rows], the prefix that each row follows; None for none.
        prefix_length: tokens of each of those; 0 for none.
        positions: [rows, width], padded; those of the model, behind the prefix.
        branches: [rows, width], padded with `PADDING`.
    """

    start: int
    stop: int
    prefix: torch.Tensor | None
    prefix_length: int
    positions: torch.Tensor
    branches: torch.Tensor
    _kept: dict[Any, Any] = field(default_factory=dict)

    def indices(
        self, kv_heads: int, keys: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Where to read what, in tensors [tokens * kv_heads, ...] of the whole packed sequence, and where it goes.

        Args:
            kv_heads: heads that have keys of their own.
            keys: of each row, its prefix and padding included.
            device: where the indices are needed.

        Returns:
            the place that each entry of the queries, [kv_heads, rows, width] flattened, is read from; that of each
            of the rows' own keys, [kv_heads, rows, keys - prefix_length] flattened; and among the queries the
            group's tokens and heads, [tokens * kv_heads].
        """
        import torch

        key = ("indices", kv_heads, keys)
        if key not in self._kept:
            rows, width = self.positions.shape
            real = (self.branches != PADDING).flatten()
            source = (self.start + (real.cumsum(0) - 1).clamp(min=0)).view(1, rows, width)
            places = source * kv_heads + torch.arange(kv_heads).view(-1, 1, 1)
            # What pads a row is any token: nothing sees it.
            own = places[:, :, torch.arange(keys - self.prefix_length).clamp(max=width - 1)]
            back = torch.arange(places.numel()).view(kv_heads, rows * width)[:, real].t()
            self._kept[key] = (places.flatten(), own.flatten(), back.flatten())
        return self._on(device, key, self._kept[key])

    def keys(self, dtype: torch.dtype) -> int:
        """Keys of each row: those of its prefix, its own, and padding up to whole vectors."""
        vector = VECTOR // dtype.itemsize
        return -(-(self.prefix_length + self.positions.shape[1]) // vector) * vector

    def followed(self, device: torch.device) -> torch.Tensor:
        """`prefix`, on a device."""
        assert self.prefix is not None
        return self._on(device, "prefix", (self.prefix,))[0]

    def mask(
        self, window: int | None, dtype: torch.dtype, device: torch.device, chunk: int | None = None
    ) -> torch.Tensor:
        """What is added to the scores, [rows or 1, width, keys]; the rows are one where all agree."""
        import torch
        from torch.nn.functional import pad

        key = ("mask", window, dtype, chunk)
        if key not in self._kept:
            width = self.positions.shape[1]
            index = torch.arange(width)
            visible = index[:, None] >= index
            if bool((self.branches > TRUNK).any()):
                same = self.branches[:, :, None] == self.branches[:, None, :]
                visible = visible & (same | (self.branches == TRUNK)[:, None, :])
            visible = visible.expand(-1 if visible.dim() == 3 else 1, -1, -1)
            before = visible.new_ones(*visible.shape[:2], self.prefix_length)
            if window is not None and int(self.positions.max()) >= window:
                near = self.positions[:, None, :] > self.positions[:, :, None] - window
                prefix = torch.arange(self.prefix_length) > self.positions[:, :, None] - window
                visible, before = visible & near, before & prefix
            if chunk is not None and int(self.positions.max()) >= chunk:
                number = self.positions // chunk
                prefix = torch.arange(self.prefix_length) // chunk == number[:, :, None]
                visible, before = visible & (number[:, None, :] == number[:, :, None]), before & prefix
            visible = torch.cat([before, visible], dim=2)
            visible = pad(visible, (0, self.keys(dtype) - visible.shape[2]))
            self._kept[key] = (torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min),)
        return self._on(device, key, self._kept[key])[0]

    def _on(self, device: torch.device, name: Any, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The tensors on a device; copied there once, however many layers ask."""
        key = (name, str(device))
        if key not in self._kept:
            self._kept[key] = tuple(tensor.to(device) for tensor in tensors)
        return self._kept[key]


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
        from idp.prompting.attention.sequences import divide

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
    before = [0] * len(tokens) if choice is None else prefixes.lengths[torch.tensor(choice)].tolist()
    switch = switch_of(model.config)
    is_long = [
        switch is not None and (offset + max(places, default=0) >= switch if long is None else long)
        for offset, places in zip(before, positions, strict=True)
    ]
    if choice is not None and any(is_long):
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
