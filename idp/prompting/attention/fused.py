"""Attention over packed rows by a fused kernel for sequences of different lengths, where it computes the same.

The parts of what tokens see (`sequences.py`) go through the kernel one by one. It gives each part's output and the
log-sum-exp of its scores, and two parts o_1, o_2 of log-sum-exp l_1, l_2 are one by

    o = o_1 + (o_2 - o_1) * sigmoid(l_2 - l_1),   l = log(exp(l_1) + exp(l_2)).

`kernel_for` is asked at every layer whether a kernel computes what the layer wants. The first time that it is used in
some way, it is held to plain products in float32; where it fails or differs, they are used on that device, and that is
said once.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from idp.errors import lacks_memory
from idp.prompting.attention import plain
from idp.prompting.attention.weighing import Weighing

if TYPE_CHECKING:
    import torch

    from idp.prompting.attention.sequences import Parts, Sequences
    from idp.prompting.packing import Packed

log = logging.getLogger(__name__)

APART = 2**-5  # of a token's output: bfloat16 rounds to 2**-9, what is wrongly put together is off by tenths
AT_ONCE = 2**16 - 1  # sequences: what the grid of a CUDA kernel holds
Pair = tuple["torch.Tensor", "torch.Tensor"]  # an output [queries, heads, head_dim]; log-sum-exps [heads, queries]


@dataclass(frozen=True)
class Kernel:
    """Variable-length attention on one kind of device.

    Args:
        run: attention of queries [queries, heads, head_dim] over keys and values [keys, kv_heads, head_dim], by
            sequences, causal (where each has as many keys as queries) or not, and scaled: a `Pair`.
        takes: whether it computes queries and values of this kind, and exactly enough.
        available: whether this machine's device of a dtype has it.
    """

    run: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Sequences, bool, float], Pair]
    takes: Callable[[torch.Tensor, torch.Tensor], bool]
    available: Callable[[torch.device, torch.dtype], bool]


def kernel_for(
    packed: Packed, query: torch.Tensor, value: torch.Tensor, prefix: Sequence[Any] | None, weighing: Weighing
) -> Kernel | None:
    """The kernel that computes a layer's attention just as plain products do; None where none does.

    Args:
        packed: the rows.
        query: [tokens, heads, head_dim].
        value: [tokens, kv_heads, value_dim].
        prefix: keys and values of all prefixes; None for none.
        weighing: the layer's. A bound on scores, and a window or chunk that hides anything, are beyond the kernels.
    """
    import torch

    kernel = KERNELS.get(query.device.type)
    if kernel is None or str(query.device) in _distrusted or not kernel.takes(query, value):
        return None
    if torch.is_grad_enabled() and (query.requires_grad or value.requires_grad):
        return None  # no gradient goes through the log-sum-exps
    if prefix is not None and any(tensor.dtype != query.dtype for tensor in prefix):
        return None
    divided = packed.divided
    if divided.parts is None or divided.count > AT_ONCE:
        return None
    local = [size for size in (weighing.window, weighing.chunk) if size is not None]
    if weighing.cap is not None or any(divided.last >= size for size in local):
        return None
    return kernel


def attend(
    kernel: Kernel,
    packed: Packed,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor] | None,
    weighing: Weighing,
) -> torch.Tensor | None:
    """Attention of all tokens, [tokens, heads, head_dim]; None where the kernel cannot be trusted on this device.

    Args:
        kernel: what `kernel_for` gives.
        packed: the rows.
        query: [tokens, heads, head_dim].
        key: [tokens, kv_heads, head_dim]; `value` likewise.
        value: see `key`.
        prefix: keys and values of all prefixes, [prefixes, kv_heads, longest, head_dim].
        weighing: the layer's.
    """
    parts = packed.divided.parts
    assert parts is not None  # `kernel_for` gives no kernel for rows without parts
    use = (
        *(str(query.device), query.dtype, *query.shape[1:], key.shape[1]),
        *(parts.behind is None, parts.over is None, weighing.sinks is None, parts.alone > 0),
    )
    try:
        output = in_parts(kernel, packed, query, key, value, prefix, weighing)
    except Exception as error:
        if use in _held or lacks_memory(error):
            raise
        _distrust(query, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return None
    if use not in _held:
        apart = _apart(output, packed, query, key, value, prefix, weighing)
        if apart is not None and not apart <= APART:
            _distrust(query, f"it differs from plain products by {apart:.0%}")
            return None
        if apart is not None:
            _held.add(use)
    return output


_held: set[tuple[Any, ...]] = set()  # ways of use in which a kernel gave what plain products give
_distrusted: set[str] = set()  # devices whose kernel failed


def in_parts(
    kernel: Kernel,
    packed: Packed,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor] | None,
    weighing: Weighing,
) -> torch.Tensor:
    """`attend`, as it comes."""
    import torch

    parts, scale, sinks = packed.divided.on(query.device), weighing.scaling, weighing.sinks
    output, mass = kernel.run(query, key, value, parts.causal, True, scale)
    if parts.behind is not None:
        assert prefix is not None
        keys, values = (_of_prefixes(tensor, parts) for tensor in prefix)
        found = kernel.run(query[parts.alone :], keys, values, parts.behind, False, scale)
        mine = output[parts.alone :], mass[:, parts.alone :]
        _, behind = _merged(mine, found, last=parts.over is None and sinks is None)  # the output in its place
        mass = torch.cat([mass[:, : parts.alone], behind], dim=1) if parts.alone else behind
    if parts.over is not None:
        at = parts.branched
        mine = output.index_select(0, at), mass.index_select(1, at)
        found = kernel.run(query.index_select(0, at), key, value, parts.over, False, scale)
        mine = _merged(mine, found, last=sinks is None)
        output.index_copy_(0, at, mine[0])
        if sinks is not None:
            mass.index_copy_(1, at, mine[1])
    if sinks is not None:  # a key of that score whose value is nothing
        output *= (mass - sinks.float()[:, None]).sigmoid().t()[..., None].to(output.dtype)
    return output


def _of_prefixes(tensor: torch.Tensor, parts: Parts) -> torch.Tensor:
    """Keys or values of the prefixes that rows follow, end to end, [keys, kv_heads, head_dim]."""
    if parts.single is not None:  # nothing is copied
        which, length = parts.single
        return tensor[which, :, :length].transpose(0, 1)
    return tensor[parts.prefix, :, parts.place]


def _merged(one: Pair, other: Pair, last: bool) -> Pair:
    """Attention over the keys of both; overwrites the first output. The log-sum-exps of the `last` are not needed."""
    share = (other[1] - one[1]).sigmoid().t()[..., None].to(one[0].dtype)
    return one[0].lerp_(other[0], share), one[1] if last else one[1].logaddexp(other[1])


def _apart(output: torch.Tensor, packed: Packed, *inputs: Any) -> float | None:
    """How far outputs are from those of plain products in float32, in parts of the token's; None if those are not
    finite, which says nothing of the kernel."""
    import torch

    query, key, value, prefix, weighing = inputs
    prefix = prefix and tuple(tensor.float() for tensor in prefix)
    expected = plain.attend(packed, query.float(), key.float(), value.float(), prefix, weighing).flatten(1)
    if not bool(torch.isfinite(expected).all()):
        return None
    sizes = expected.norm(dim=1)
    distances = (output.flatten(1).float() - expected).norm(dim=1)
    return float((distances / sizes.clamp(min=float(sizes.mean()) / 8 + 1e-20)).max())


def _distrust(query: torch.Tensor, why: str) -> None:
    _distrusted.add(str(query.device))
    log.warning("fused attention is not used on %s: %s; plain products are, which are slower", query.device, why)


def in_use(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether attention of models of a dtype on a device goes through a kernel wherever that computes the same."""
    kernel = KERNELS.get(device.type)
    return kernel is not None and kernel.available(device, dtype)


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sequences: Sequences, causal: bool, scale: float
) -> Pair:
    """The flash attention that torch brings along, as `torch.nn.attention.varlen` calls it."""
    import torch

    output, mass, *_ = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        sequences.queries,
        sequences.keys,
        # At one query, and fewer key heads than query heads, it exchanges queries and heads: a path of its own.
        max(sequences.longest_queries, 2),
        sequences.longest_keys,
        0.0,
        causal,
        False,
        scale=scale,
        seqused_k=sequences.used,
    )
    if mass.shape != (query.shape[1], query.shape[0]):
        raise RuntimeError(f"log-sum-exps are {list(mass.shape)}, not [heads, queries]")
    return output, mass


def _flash_takes(query: torch.Tensor, value: torch.Tensor) -> bool:
    dim = query.shape[-1]
    return value.shape[-1] == dim and dim % 8 == 0 and dim <= 256 and _flash_available(query.device, query.dtype)


def _flash_available(device: torch.device, dtype: torch.dtype) -> bool:
    """In half precision, unless it is switched off (`torch.backends.cuda.enable_flash_sdp`)."""
    import torch

    half = dtype in (torch.float16, torch.bfloat16)
    return half and torch.backends.cuda.flash_sdp_enabled() and _has_flash(device)


@functools.cache
def _has_flash(device: torch.device) -> bool:
    """Whether this is a card from Ampere on and a build of torch for it. AMD's kernels align masks otherwise."""
    import torch

    return (
        torch.version.hip is None
        and torch.cuda.is_available()
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


KERNELS: dict[str, Kernel] = {"cuda": Kernel(_flash, _flash_takes, _flash_available)}  # by kind of device
