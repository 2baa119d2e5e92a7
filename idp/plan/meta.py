"""Bytes that a computation holds on a card, counted on `meta` tensors: no card and no memory is needed.

A `meta` tensor has a shape and no numbers. All that torch makes while a training step runs on such tensors, forward and
backward, is what it would make on a card, so that their storages' sizes give its peak to the byte. What is not counted:
what the allocator rounds up (512 bytes a tensor) and cannot reuse, what kernels allocate within themselves (some 100 MB
for the gradient of attention at 2 x 1024 tokens of a hidden size of 4096), cuBLAS' workspace, and the CUDA context.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.nn.attention.bias import CausalBias, causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

HALF = (torch.float16, torch.bfloat16)
ALIGNED = 16  # keys: to how many of them a mask's rows are padded for the memory-efficient kernel


class Peak(TorchDispatchMode):
    """Within the block, counts the bytes of all `meta` storages that are made in it, until they are freed.

    Attention takes the kernels that a card would: flash without a mask, the memory-efficient one with it.

    Args:
        limit: bytes that the pretended card has; None: any number.

    Attributes:
        now: bytes held at this moment.
        peak: the most bytes that were held at once, since the start or `restart`.
        at_peak: the operation that reached it.

    Raises:
        torch.OutOfMemoryError: within the block, where a storage would go beyond `limit`.
    """

    def __init__(self, limit: int | None = None):
        super().__init__()
        self.now, self.peak, self.at_peak, self.limit = 0, 0, "", limit
        self._live: dict[int, int] = {}
        self._counted = True
        self._stack = contextlib.ExitStack()

    def restart(self) -> None:
        """Forgets the peak so far."""
        self.peak, self.at_peak = self.now, ""

    @contextlib.contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Within the block nothing is counted: its tensors are not on the card."""
        counted, self._counted = self._counted, False
        try:
            yield
        finally:
            self._counted = counted

    def __enter__(self) -> Peak:
        self._stack.enter_context(
            mock.patch("torch.nn.functional.scaled_dot_product_attention", _fused(scaled_dot_product_attention))
        )
        # Whether rows are packed or padded is asked of values, which there are none of: ours never are.
        for name, answer in {"find_packed_sequence_indices": None, "fast_all": True}.items():
            self._stack.enter_context(
                mock.patch(f"transformers.masking_utils.{name}", lambda asked, answer=answer: answer)
            )
        self._stack.enter_context(
            mock.patch("torch.backends.cuda.can_use_flash_attention", lambda asked: asked.query.dtype in HALF)
        )
        self._stack.enter_context(mock.patch("torch.nn.attention.bias.causal_lower_right", _unseen(causal_lower_right)))
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        try:
            super().__exit__(*raised)
        finally:
            self._stack.close()

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta":
                self._count(tensor.untyped_storage(), func)
        return found

    def _count(self, storage: torch.UntypedStorage, func: Callable) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            return
        if not self._counted:  # known, so that a view of it is not taken for something new later
            size = 0
        if self.limit is not None and self.now + size > self.limit:
            raise torch.OutOfMemoryError(
                f"out of memory: {func} wants {size:,} bytes beside {self.now:,} of {self.limit:,}"
            )
        self._live[key] = size
        self.now += size
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, str(func)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._live.pop(key, 0)


def _fused(plain: Callable) -> Callable:
    """Torch's attention, on `meta` tensors by the kernels of a card; torch itself would take plain products there."""

    def attention(query: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        return (_attention if query.device.type == "meta" else plain)(query, *arguments, **named)

    return attention


def _unseen(make: Callable) -> Callable:
    """`make`, out of sight of all modes: a tensor of a class of its own cannot be made in their sight."""

    def made(*arguments: Any) -> torch.Tensor:
        with _disable_current_modes():
            return make(*arguments)

    return made


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """The attention of torch, with its arguments, of [rows, heads, tokens, head_size]."""
    if query.dtype == torch.float32 or (attn_mask is not None and not isinstance(attn_mask, CausalBias)):
        return _efficient(query, key, value, attn_mask, dropout_p, is_causal, scale)
    if key.shape[1] != query.shape[1]:  # the kernel shares heads without copies, its counterpart on meta does not
        key, value = (_expanded(tensor, query.shape[1]) for tensor in (key, value))
    causal = is_causal or isinstance(attn_mask, CausalBias)
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, causal, scale=scale)[0]


def _efficient(query: Any, key: Any, value: Any, mask: Any, dropout: float, causal: bool, scale: Any) -> torch.Tensor:
    if key.shape[1] != query.shape[1]:
        key, value = (_expanded(tensor, query.shape[1]).contiguous() for tensor in (key, value))
    if isinstance(mask, CausalBias):  # the kernel knows this one without a tensor
        mask, causal = None, True
    if mask is not None:
        keys = mask.shape[-1]
        if mask.dtype == torch.bool:  # torch makes it one that is added
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
        if keys % ALIGNED:
            mask = torch.nn.functional.pad(mask, (0, ALIGNED - keys % ALIGNED))[..., :keys]
        mask = mask.expand(query.shape[0], query.shape[1], -1, -1)
    graded = torch.is_grad_enabled()
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(query, key, value, mask, graded, dropout, causal, scale=scale)[0]


def _expanded(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    rows, kv_heads, tokens, size = tensor.shape
    return tensor[:, :, None].expand(rows, kv_heads, heads // kv_heads, tokens, size).flatten(1, 2)
