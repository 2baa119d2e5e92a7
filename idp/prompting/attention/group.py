"""Rows of a packed sequence that attend together: of about one length, behind prefixes of one length."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TRUNK, PADDING = 0, -1  # a token of branch 1, 2, ... sees the trunk and its own branch
VECTOR = 64  # bytes: a softmax over rows that are no whole number of a CPU's vectors takes twice as long


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
            key_places = places[:, :, torch.arange(keys - self.prefix_length).clamp(max=width - 1)]
            back = torch.arange(places.numel()).view(kv_heads, rows * width)[:, real].t()
            self._kept[key] = (places.flatten(), key_places.flatten(), back.flatten())
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
