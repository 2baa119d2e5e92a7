"""Attention over packed rows by plain products of queries and keys, a group of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from idp.prompting.attention.group import VECTOR, Group
from idp.prompting.packing import Packed

if TYPE_CHECKING:
    import torch

    from idp.prompting.attention.weighing import Weighing

BLOCK, LONG_BLOCK = 64, 128  # queries at a time, in short rows and in long ones: the keys behind them are left out
GPU_BLOCK = 512  # on a GPU, whose time for less is that of starting its kernels


def attend(
    packed: Packed,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor] | None,
    weighing: Weighing,
) -> torch.Tensor:
    """Attention of all tokens, [tokens, heads, head_dim of the values]; the arguments are those of `attend_group`."""
    if len(packed.groups) == 1:
        return attend_group(packed.groups[0], query, key, value, prefix, weighing)
    output = query.new_empty(*query.shape[:2], value.shape[-1])
    for group in packed.groups:
        output[group.start : group.stop] = attend_group(group, query, key, value, prefix, weighing)
    return output


def attend_group(
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
    places, key_places, back = group.indices(kv_heads, count, query.device)
    query = _taken(query, places, kv_heads).view(kv_heads * rows, width * heads // kv_heads, -1)
    keys, values = (
        _behind(prefix[which] if prefix is not None else None, group, _taken(mine, key_places, kv_heads), kv_heads)
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
    places, key_places, back = group.indices(kv_heads, count, query.device)
    query = _taken(query, places, kv_heads).view(kv_heads * rows, -1, key.shape[2])
    keys = _taken(key, key_places, kv_heads).view(kv_heads * rows, count, -1)
    mask, mass = group.mask(weighing.window, torch.float32, query.device, weighing.chunk), []
    for scores, _ in _in_blocks(group, query, keys, mask, weighing):
        mass.append(scores.logsumexp(dim=-1).view(kv_heads * rows, -1))
    return (
        torch.cat(mass, dim=1).view(len(places), -1).index_select(0, back).view(-1, query.shape[1] // width * kv_heads)
    )


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
    if query.device.type != "cpu":
        block = GPU_BLOCK
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


def _behind(prefix: Any, group: Group, tensor: Any, kv_heads: int) -> torch.Tensor:
    """Keys or values of each row behind those of its prefix, [kv_heads * rows, keys, head_dim]."""
    rows, n = len(group.positions), group.prefix_length
    tensor = tensor.view(kv_heads, rows, -1, tensor.shape[-1])
    if prefix is not None:
        whole = tensor.new_empty(kv_heads, rows, n + tensor.shape[2], tensor.shape[-1])
        before = prefix[:, :, :n].transpose(0, 1)
        whole[:, :, :n] = before if len(prefix) == 1 else before.index_select(1, group.followed(prefix.device))
        whole[:, :, n:] = tensor
        tensor = whole
    return tensor.flatten(0, 1)
