"""One forward pass over rows of different lengths, branches and prefixes, without padding.

Every part of a decoder but attention treats tokens one by one, so the rows of a batch stand end to end in one
sequence, and each layer's products run over all of them at once. Attention goes through transformers' own registry of
attention functions: ours takes the sequence apart into groups of rows of about one length behind prefixes of one
length, and lets each row see its prefix, its trunk and its own branch.

    tokens  | a a a a a | b b b b b | c c c | d d |       groups  {a, b} behind prompts 0 and 2, {c, d} behind prompt 1
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from idp.errors import UserError
from idp.prompting.frequencies import frequencies, switch_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from idp.prompting.prefix import Prefixes

PACKED = "idp_packed"
TRUNK, PADDING = 0, -1  # a token of branch 1, 2, ... sees the trunk and its own branch
SNUG = 0.75  # a row joins a group if it fills this share of the group's width
FEW = 8  # or if the group is this small
VECTOR = 64  # bytes: a softmax over rows that are no whole number of a CPU's vectors takes twice as long
BLOCK, LONG_BLOCK = 64, 128  # queries at a time, in short rows and in long ones: the keys behind them are left out
CPU_SCORES, GPU_SCORES = 2**21, 2**27  # attention scores of a group: what a CPU's cache holds, what a GPU's memory does


@dataclass(frozen=True)
class Weighing:
    """How a layer weighs the keys that a query may see.

    Args:
        scaling: of the products of queries and keys.
        window: tokens of its sliding window, the query's own counted; None: all that came before.
        chunk: tokens of the chunks that its attention does not cross; None: there are none.
        cap: bounds the scaled products s to cap * tanh(s / cap); None: not at all.
        sinks: [heads], the score of a key that is not there and only takes weight away; None: there is none.
    """

    scaling: float
    window: int | None = None
    chunk: int | None = None
    cap: float | None = None
    sinks: torch.Tensor | None = None


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
    scores = (GPU_SCORES if torch.device(device).type == "cuda" else CPU_SCORES) // heads
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


@contextlib.contextmanager
def packed_attention(
    model: PreTrainedModel, packed: Packed, prefixes: Prefixes | None, stop_at: int | None = None
) -> Iterator[dict[str, Any]]:
    """Within the block, the model takes packed rows; yields what to pass to it.

    Args:
        model: a causal language model.
        packed: the rows.
        prefixes: what they follow; None for nothing.
        stop_at: the layer at whose attention the forward pass ends, by `Reached`; None for none.

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

    whole = prefixes.whole if prefixes is not None else None
    config = model.config.get_text_config()
    before = config._attn_implementation
    kinds, chunk = getattr(config, "layer_types", None) or (), getattr(config, "attention_chunk_size", None)

    def attention(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, scaling: Any = None, **rest: Any
    ) -> Any:
        layer = module.layer_idx
        if attention_mask is not None and attention_mask.numel() != 1:
            raise UserError(
                f"{type(model).__name__}: {type(module).__name__} adds a bias of its own to its attention, which packed"
                " rows would lose; use another model"
            )
        weighing = Weighing(
            query.shape[-1] ** -0.5 if scaling is None else scaling,
            rest.get("sliding_window"),
            chunk if kinds and kinds[layer] == "chunked_attention" else None,
            # Gemma-2's bound on scores, as the model's own implementation heeds it: torch's fused attention does not.
            None if before == "sdpa" else rest.get("softcap"),
            rest.get("s_aux"),
        )
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        if layer == stop_at:
            raise Reached(query, key, weighing)
        prefix = (whole.keys[layer], whole.values[layer]) if whole is not None else None
        output = query.new_empty(*query.shape[:2], value.shape[-1])
        for group in packed.groups:
            output[group.start : group.stop] = _attend(group, query, key, value, prefix, weighing)
        return output[None], None

    AttentionInterface.register(PACKED, attention)
    config._attn_implementation = PACKED
    try:
        # A mask of four dimensions is handed on as it is; ours is made from the groups.
        mask = torch.zeros(1, 1, 1, 1, device=packed.tokens.device)
        with frequencies(model, packed.long):
            yield {
                "input_ids": packed.tokens,
                "position_ids": packed.positions,
                "attention_mask": mask,
                "use_cache": False,
            }
    finally:
        config._attn_implementation = before


class Reached(Exception):
    """Ends a forward pass at a layer's attention, and carries its queries, keys and how it weighs them."""


def queries_and_keys(
    model: PreTrainedModel, packed: Packed, prefixes: Prefixes | None, layer: int
) -> tuple[torch.Tensor, torch.Tensor, Weighing]:
    """What the attention of a layer is given: projected, normalised, rotated, whatever the architecture does.

    Returns:
        queries [tokens, heads, head_dim], the rows' own keys [tokens, kv_heads, head_dim], and how the layer weighs
        their products. The layers above do not run.
    """
    with packed_attention(model, packed, prefixes, stop_at=layer) as inputs:
        try:
            model.base_model(**inputs)
        except Reached as reached:
            return reached.args
    raise RuntimeError(f"{type(model).__name__} has no layer {layer}")


def own_mass(group: Group, query: torch.Tensor, key: torch.Tensor, weighing: Weighing) -> torch.Tensor:
    """How much a group's tokens attend to their own row: the log-sum-exp of their scores with the keys that they see.

    What a sink takes away counts as the row's own.

    Args:
        group: the rows.
        query: [tokens, heads, head_dim] of the whole packed sequence.
        key: [tokens, kv_heads, head_dim] of the same.
        weighing: the layer's.

    Returns:
        [tokens of the group, heads], float32.
    """
    import torch

    if group.prefix is not None:
        group = Group(group.start, group.stop, None, 0, group.positions, group.branches)
    rows, width = group.positions.shape
    kv_heads, count = key.shape[1], group.keys(torch.float32)
    places, own, back = group.indices(kv_heads, count, query.device)
    query = _taken(query, places, kv_heads).view(kv_heads * rows, -1, key.shape[2])
    keys = _taken(key, own, kv_heads).view(kv_heads * rows, count, -1)
    mask, mass = group.mask(weighing.window, torch.float32, query.device, weighing.chunk), []
    for scores, _ in _in_blocks(group, query, keys, mask, weighing):
        mass.append(scores.logsumexp(dim=-1).view(kv_heads * rows, -1))
    return (
        torch.cat(mass, dim=1).view(len(places), -1).index_select(0, back).view(-1, query.shape[1] // width * kv_heads)
    )


def _attend(
    group: Group,
    query: Any,
    key: Any,
    value: Any,
    prefix: tuple[Any, Any] | None,
    weighing: Weighing,
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
        weighing: the layer's.
    """
    (rows, width), (heads, kv_heads), count = (
        group.positions.shape,
        (query.shape[1], key.shape[1]),
        group.keys(key.dtype),
    )
    places, own, back = group.indices(kv_heads, count, query.device)
    query = _taken(query, places, kv_heads).view(kv_heads * rows, width * heads // kv_heads, -1)
    keys, values = (
        _behind(prefix[which] if prefix is not None else None, group, _taken(mine, own, kv_heads), kv_heads)
        for which, mine in enumerate((key, value))
    )
    mask = group.mask(weighing.window, query.dtype, query.device, weighing.chunk)
    output = query.new_empty(*query.shape[:2], values.shape[-1])
    for scores, part in _in_blocks(group, query, keys, mask, weighing):
        weights = scores.softmax(dim=-1)
        if weighing.sinks is not None:
            weights = weights[..., :-1]
        seen = weights.shape[-1]
        output[:, part] = weights.reshape(len(query), -1, seen) @ values[:, :seen]
    return output.view(len(places), -1).index_select(0, back).view(-1, heads, values.shape[-1])


def _in_blocks(
    group: Group, query: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor, weighing: Weighing
) -> Iterator[tuple[torch.Tensor, slice]]:
    """Masked scaled products, a block of queries at a time, with the keys up to the block's end.

    Args:
        group: the rows.
        query: [kv_heads * rows, width * heads that share a key head, head_dim].
        keys: [kv_heads * rows, keys, head_dim].
        mask: [rows or 1, width, keys], added to the products.
        weighing: the layer's.

    Yields:
        [kv_heads, rows, queries, heads that share a key head, keys seen], and where the queries stand in `query`; a
        sink is one key more, the last.
    """
    import torch

    rows, width = group.positions.shape
    repeats, vector = query.shape[1] // width, VECTOR // mask.itemsize
    scaling, cap, sinks = weighing.scaling, weighing.cap, weighing.sinks
    if query.dtype == torch.float16:  # products of unscaled queries are beyond its range where scaled ones are not
        query, scaling = query * scaling, 1.0
    block = BLOCK if width <= 2 * LONG_BLOCK else LONG_BLOCK
    for start in range(0, width, block):  # no token sees what comes after it
        stop = min(start + block, width)
        part, seen = slice(start * repeats, stop * repeats), -(-(group.prefix_length + stop) // vector) * vector
        scores = (query[:, part] @ keys[:, :seen].transpose(1, 2)).view(-1, rows, stop - start, repeats, seen)
        hidden = mask[None, :, start:stop, None, :seen]
        if cap is not None:
            scores = hidden + cap * torch.tanh(scores * (scaling / cap))
        else:
            scores = torch.add(hidden, scores, alpha=scaling)
        if sinks is not None:
            sink = sinks.view(-1, 1, 1, repeats, 1).to(scores.dtype)
            scores = torch.cat([scores, sink.expand(*scores.shape[:-1], 1)], dim=-1)
        yield scores, part


def _taken(tensor: Any, places: Any, kv_heads: int) -> torch.Tensor:
    """What stands at places of [tokens, heads, head_dim]: [places, heads / kv_heads * head_dim]."""
    return tensor.reshape(len(tensor) * kv_heads, -1).index_select(0, places)


def _behind(prefix: Any, group: Group, own: Any, kv_heads: int) -> torch.Tensor:
    """Keys or values of each row behind those of its prefix, [kv_heads * rows, keys, head_dim]."""
    rows, n = len(group.positions), group.prefix_length
    own = own.view(kv_heads, rows, -1, own.shape[-1])
    if prefix is not None:
        whole = own.new_empty(kv_heads, rows, n + own.shape[2], own.shape[-1])
        before = prefix[:, :, :n].transpose(0, 1)
        whole[:, :, :n] = before if len(prefix) == 1 else before.index_select(1, group.followed(prefix.device))
        whole[:, :, n:] = own
        own = whole
    return own.flatten(0, 1)
