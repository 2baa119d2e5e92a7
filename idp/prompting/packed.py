"""One forward pass over rows of different lengths, branches and prefixes, without padding.

Every part of a decoder but attention treats tokens one by one, so the rows of a batch stand end to end in one
sequence, and each layer's products run over all of them at once. Attention goes through transformers' own registry of
attention functions: ours takes the sequence apart into groups of rows of about one length behind one prefix, and lets
each row see its prefix, its trunk and its own branch.

    tokens  | a a a a a | b b b b b | c c c | d d |       groups  {a, b} behind prompt 0, {c, d} behind prompt 1
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from idp.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from idp.prompting.prefix import Prefixes

PACKED = "idp_packed"
TRUNK, PADDING = 0, -1  # a token of branch 1, 2, ... sees the trunk and its own branch
SNUG = 0.75  # a row joins a group if it fills this share of the group's width
FEW = 8  # or if the group is this small
BLOCK = 96  # queries at a time: the keys behind them are left out
CPU_SCORES, GPU_SCORES = 2**21, 2**27  # attention scores of a group: what a CPU's cache holds, what a GPU's memory does


@dataclass
class Group:
    """Rows of about one length behind one prefix.

    Args:
        start: of its tokens in the packed sequence, which are those up to `stop`.
        stop: see `start`.
        prefix: the prefix that its rows follow; None for none.
        prefix_length: its tokens; 0 for none.
        positions: [rows, width], padded; those of the model, behind the prefix.
        branches: [rows, width], padded with `PADDING`.
    """

    start: int
    stop: int
    prefix: int | None
    prefix_length: int
    positions: torch.Tensor
    branches: torch.Tensor
    _kept: dict[Any, Any] = field(default_factory=dict)

    def indices(self, kv_heads: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Where to read what.

        Returns:
            in tensors [tokens * kv_heads, ...] of the whole packed sequence, each place of the padded block
            [kv_heads, rows, width], flattened; and in that block the group's tokens and heads, [tokens * kv_heads].
        """
        import torch

        key = ("indices", kv_heads)
        if key not in self._kept:
            rows, width = self.positions.shape
            real = (self.branches != PADDING).flatten()
            source = (self.start + (real.cumsum(0) - 1).clamp(min=0)).view(1, rows, width)
            places = source * kv_heads + torch.arange(kv_heads).view(-1, 1, 1)
            back = torch.arange(places.numel()).view(kv_heads, rows * width)[:, real].t()
            self._kept[key] = (places.flatten(), back.flatten())
        return self._on(device, key, self._kept[key])

    def mask(self, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """What is added to the scores, [rows or 1, width, prefix_length + width]; the rows are one where all agree."""
        import torch

        if ("mask", window) not in self._kept:
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
            visible = torch.cat([before, visible], dim=2)
            mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
            self._kept["mask", window] = (mask,)
        return self._on(device, ("mask", window), self._kept["mask", window])[0]

    def _on(self, device: torch.device, name: Any, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The tensors on a device; copied there once, however many layers ask."""
        key = (name, str(device))
        if key not in self._kept:
            self._kept[key] = tuple(tensor.to(device) for tensor in tensors)
        return self._kept[key]


@dataclass
class Packed:
    """Rows end to end: `tokens` and `positions` are [1, tokens], `starts` where each row begins, in the order given."""

    tokens: torch.Tensor
    positions: torch.Tensor
    starts: list[int]
    groups: list[Group]


def pack(
    tokens: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    branches: Sequence[Sequence[int]],
    choice: Sequence[int] | None,
    prefixes: Prefixes | None,
    model: PreTrainedModel,
    device: torch.device,
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
    """
    import torch

    lengths = [len(row) for row in tokens]
    followed = list(choice) if choice is not None else [0] * len(tokens)
    before = prefixes.lengths.tolist() if choice is not None else [0]
    flat: list[int] = []
    shifted: list[int] = []
    starts, groups = [0] * len(tokens), []
    for members in in_groups(lengths, followed, before, model, device):
        start, prefix = len(flat), followed[members[0]]
        width, offset = lengths[members[0]], before[prefix]
        places = torch.zeros(len(members), width, dtype=torch.long)
        kinds = torch.full((len(members), width), PADDING)
        for number, row in enumerate(members):
            starts[row] = len(flat)
            flat += tokens[row]
            shifted += (moved := [position + offset for position in positions[row]])
            places[number, : lengths[row]] = torch.tensor(moved)
            kinds[number, : lengths[row]] = torch.tensor(branches[row])
        groups.append(Group(start, len(flat), prefix if choice is not None else None, offset, places, kinds))
    return Packed(torch.tensor([flat], device=device), torch.tensor([shifted], device=device), starts, groups)


def in_groups(
    lengths: Sequence[int], followed: Sequence[int], before: Sequence[int], model: PreTrainedModel, device: torch.device
) -> list[list[int]]:
    """Rows that attend together: behind one prefix, of about one length, longest first, and not too many.

    Args:
        lengths: of the rows, in tokens.
        followed: the prefix of each.
        before: the length of each prefix.
        model: its number of heads decides how many rows are too many.
        device: of the model.
    """
    import torch

    heads = model.config.get_text_config().num_attention_heads
    scores = (GPU_SCORES if torch.device(device).type == "cuda" else CPU_SCORES) // heads
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (followed[row], -lengths[row], row)):
        if groups:
            group = groups[-1]
            width = lengths[group[0]]
            fits = (len(group) + 1) * width * (width + before[followed[row]]) <= scores
            near = len(group) < FEW or lengths[row] >= SNUG * width
            if fits and near and followed[row] == followed[group[0]]:
                group.append(row)
                continue
        groups.append([row])
    return groups


@contextlib.contextmanager
def packed_attention(model: PreTrainedModel, packed: Packed, prefixes: Prefixes | None) -> Iterator[dict[str, Any]]:
    """Within the block, the model takes packed rows; yields what to pass to it.

    Raises:
        UserError: the model's attention does not go through transformers' registry.
    """
    import torch
    from transformers import AttentionInterface

    if not getattr(model, "_supports_attention_backend", True):
        raise UserError(
            f"{type(model).__name__}: its attention cannot be replaced, so it cannot be scored with prompts; use a"
            " model whose attention goes through transformers' AttentionInterface"
        )

    def attention(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any = None, **rest: Any) -> Any:
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        prefix = None
        if prefixes is not None:
            prefix = (prefixes.keys[module.layer_idx], prefixes.values[module.layer_idx])
        output = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        for group in packed.groups:
            found = _attend(group, query, key, value, prefix, scaling, rest.get("sliding_window"))
            output[group.start : group.stop] = found
        return output[None], None

    config = model.config.get_text_config()
    before = config._attn_implementation
    AttentionInterface.register(PACKED, attention)
    config._attn_implementation = PACKED
    try:
        yield {
            "input_ids": packed.tokens,
            "position_ids": packed.positions,
            # A mask of four dimensions is handed on as it is; ours is made from the groups.
            "attention_mask": torch.zeros(1, 1, 1, 1, device=packed.tokens.device),
            "use_cache": False,
        }
    finally:
        config._attn_implementation = before


def _attend(
    group: Group, query: Any, key: Any, value: Any, prefix: tuple[Any, Any] | None, scaling: float, window: int | None
) -> torch.Tensor:
    """Attention of a group's tokens, [tokens of the group, heads, head_dim].

    Plain products: on short rows they are faster than the fused kernels that CPUs have, which take blocks of
    hundreds of tokens, and the query heads that share a key head need no copies of it.

    Args:
        group: the rows.
        query: [tokens, heads, head_dim] of the whole packed sequence.
        key: [tokens, kv_heads, head_dim]; `value` likewise.
        value: see `key`.
        prefix: keys and values of all prefixes, [prefixes, kv_heads, longest, head_dim].
        scaling: of the products.
        window: the layer's sliding window.
    """
    import torch

    (rows, width), (heads, kv_heads), n = group.positions.shape, (query.shape[1], key.shape[1]), group.prefix_length
    places, back = group.indices(kv_heads, query.device)
    repeats, block = heads // kv_heads, kv_heads * rows
    query = _taken(query, places, kv_heads).view(block, width * repeats, -1)
    keys, values = (
        _behind(prefix[which] if prefix is not None else None, group, _taken(own, places, kv_heads), kv_heads)
        for which, own in enumerate((key, value))
    )
    mask = group.mask(window, query.dtype, query.device)[None, :, :, None]
    output = query.new_empty(block, width * repeats, values.shape[-1])
    for start in range(0, width, BLOCK):  # no token sees what comes after it
        stop = min(start + BLOCK, width)
        part, seen = slice(start * repeats, stop * repeats), n + stop
        scores = (query[:, part] @ keys[:, :seen].transpose(1, 2)).view(kv_heads, rows, -1, repeats, seen)
        scores = torch.add(mask[:, :, start:stop, :, :seen], scores, alpha=scaling).softmax(dim=-1)
        output[:, part] = scores.view(block, -1, seen) @ values[:, :seen]
    return output.view(len(places), -1).index_select(0, back).view(-1, heads, values.shape[-1])


def _taken(tensor: Any, places: Any, kv_heads: int) -> torch.Tensor:
    """A group's part of [tokens, heads, head_dim], padded: [kv_heads * rows * width, heads / kv_heads * head_dim]."""
    return tensor.reshape(len(tensor) * kv_heads, -1).index_select(0, places)


def _behind(prefix: Any, group: Group, own: Any, kv_heads: int) -> torch.Tensor:
    """Keys or values of each row behind those of its prefix, [kv_heads * rows, prefix_length + width, head_dim]."""
    (rows, width), n = group.positions.shape, group.prefix_length
    own = own.view(kv_heads, rows, width, -1)
    if prefix is not None:
        whole = own.new_empty(kv_heads, rows, n + width, own.shape[-1])
        whole[:, :, :n] = prefix[group.prefix, :, None, :n]
        whole[:, :, n:] = own
        own = whole
    return own.view(kv_heads * rows, n + width, -1)
