"""Prompts in few bytes: 16, 8 or 4 bits a number, and with the smallest numbers left out.

Integers are rounded to the nearest of a grid that each prompt token has for itself: `x = scale * (code - zero)`,
symmetric with zero = 0, or from the token's smallest to its largest number (0 included, so that a pruned number stays
exactly 0). Two 4-bit codes share a byte. Of a pruned prompt the survivors alone are stored, behind one bit per number
that says where they belong, unless that would be larger than the whole.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.config import Storage

if TYPE_CHECKING:
    import torch

PACKED = "packed_prompt.safetensors"  # a name that PEFT does not look for: it could not read what is inside


def is_plain(storage: Storage | None) -> bool:
    """Whether prompts stay as they were trained, in float32."""
    return storage is None or (storage.bits == 32 and storage.prune == 0)


def peft_reads(storage: Storage | None) -> bool:
    """Whether what is stored is one dense float tensor per prompt, as in PEFT's own files."""
    return storage is None or (storage.bits >= 16 and storage.prune == 0)


def float_type(storage: Storage | None) -> torch.dtype:
    """The dtype of prompts that are stored as floats."""
    import torch

    return torch.float32 if storage is None or storage.bits == 32 else getattr(torch, storage.half)


def pack(prompt: torch.Tensor, storage: Storage) -> dict[str, torch.Tensor]:
    """A prompt [tokens, hidden_size] as the tensors that are stored of it.

    Returns:
        `values` (float32, float16 or bfloat16) or `codes` (uint8; two 4-bit ones to a byte, the first in the low
        half), of all numbers row by row or, with `mask` (uint8, eight numbers to a byte), of those that are not 0;
        for codes also `scale` [tokens] float32 and, unless symmetric, `zero` [tokens] uint8.
    """
    import torch

    kept = prune(prompt.detach().float().cpu(), storage.prune)
    tensors: dict[str, torch.Tensor] = {}
    if storage.bits >= 16:
        name = "values"
        stored = kept.to(float_type(storage)).flatten()
    else:
        name = "codes"
        codes, scale, zero = quantise(kept, storage.bits, storage.symmetric)
        tensors["scale"] = scale
        if zero is not None:
            tensors["zero"] = zero.to(torch.uint8)
        else:
            codes = codes + 2 ** (storage.bits - 1)
        stored = codes.to(torch.uint8).flatten()
    mask = kept.flatten() != 0
    sparse = stored[mask]
    dense_form, sparse_form = (_nibbles(each) if storage.bits == 4 else each for each in (stored, sparse))
    packed_mask = _bits(mask)
    if sparse_form.nbytes + packed_mask.nbytes < dense_form.nbytes:
        return {**tensors, name: sparse_form.contiguous(), "mask": packed_mask}
    return {**tensors, name: dense_form.contiguous()}


def unpack(tensors: dict[str, torch.Tensor], storage: Storage, shape: tuple[int, int]) -> torch.Tensor:
    """The prompt of shape [tokens, hidden_size], float32, that `pack` stored.

    Raises:
        KeyError, ValueError, RuntimeError: the tensors do not belong together.
    """
    import torch

    rows, columns = shape
    count = rows * columns
    mask = _from_bits(tensors["mask"], count) if "mask" in tensors else torch.ones(count, dtype=torch.bool)
    stored = int(mask.sum())
    if storage.bits >= 16:
        numbers = tensors["values"].float()
        if len(numbers) != stored:
            raise ValueError(f"{len(numbers)} values for {stored} places")
        return torch.zeros(count).masked_scatter_(mask, numbers).view(rows, columns)
    codes = tensors["codes"]
    codes = _from_nibbles(codes, stored) if storage.bits == 4 else codes
    if len(codes) != stored:
        raise ValueError(f"{len(codes)} codes for {stored} places")
    half = 2 ** (storage.bits - 1)
    zero = tensors["zero"].float() if "zero" in tensors else torch.full((rows,), float(half))
    found = zero.repeat_interleave(columns).masked_scatter_(mask, codes.float()).view(rows, columns)
    return (found - zero[:, None]) * tensors["scale"][:, None]


def prune(prompt: torch.Tensor, share: float) -> torch.Tensor:
    """A prompt with the `share` of its numbers that are smallest in magnitude set to 0 (rounded down to whole ones)."""
    count = int(share * prompt.numel())
    if count == 0:
        return prompt
    smallest = prompt.abs().flatten().argsort(stable=True)[:count]
    kept = prompt.clone().flatten()
    kept[smallest] = 0.0
    return kept.view_as(prompt)


def quantise(
    prompt: torch.Tensor, bits: int, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Each token's numbers on a grid of its own: codes [tokens, hidden_size], scale [tokens], zero [tokens] or None.

    Symmetric codes are from -(2^(bits-1) - 1) to 2^(bits-1) - 1, others from 0 to 2^bits - 1.
    """
    tiny = 1e-12  # a token of zeros has any scale
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = (prompt.abs().amax(dim=1) / top).clamp_min(tiny)
        return (prompt / scale[:, None]).round().clamp(-top, top), scale, None
    top = 2**bits - 1
    low, high = prompt.amin(dim=1).clamp_max(0.0), prompt.amax(dim=1).clamp_min(0.0)
    scale = ((high - low) / top).clamp_min(tiny)
    zero = (-low / scale).round().clamp(0, top)
    return ((prompt / scale[:, None]).round() + zero[:, None]).clamp(0, top), scale, zero


def tensor_bytes(folder: Path) -> int:
    """Bytes of all tensors in the safetensors files below a folder, without the files' headers."""
    return sum(_payload(file) for file in sorted(folder.rglob("*.safetensors")))


def described(storage: Storage) -> dict[str, Any]:
    """What `bank.json` says of the format."""
    description: dict[str, Any] = {"bits": storage.bits, "prune": storage.prune}
    if storage.bits == 16:
        description["half"] = storage.half
    if storage.bits < 16:
        description["symmetric"] = storage.symmetric
    return description


def from_description(description: dict[str, Any]) -> Storage:
    """The storage that `described` wrote."""
    return Storage(
        description["bits"],
        description["prune"],
        description.get("symmetric", True),
        description.get("half", "bfloat16"),
    )


def _payload(file: Path) -> int:
    with open(file, "rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(
        end - start for name, each in header.items() if name != "__metadata__" for start, end in [each["data_offsets"]]
    )


def _nibbles(codes: torch.Tensor) -> torch.Tensor:
    import torch

    padded = torch.nn.functional.pad(codes, (0, len(codes) % 2)).view(-1, 2)
    return padded[:, 0] | (padded[:, 1] << 4)


def _from_nibbles(packed: torch.Tensor, count: int) -> torch.Tensor:
    import torch

    return torch.stack([packed & 15, packed >> 4], dim=1).flatten()[:count]


def _bits(mask: torch.Tensor) -> torch.Tensor:
    import numpy
    import torch

    return torch.from_numpy(numpy.packbits(mask.numpy()))


def _from_bits(packed: torch.Tensor, count: int) -> torch.Tensor:
    import numpy
    import torch

    if len(packed) != math.ceil(count / 8):
        raise ValueError(f"a mask of {len(packed)} bytes for {count} numbers")
    return torch.from_numpy(numpy.unpackbits(packed.numpy(), count=count).astype(bool))
