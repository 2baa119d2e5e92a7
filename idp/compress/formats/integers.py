"""GPTQ's and AWQ's packed integers as plain weights, without the GPU packages that transformers asks for.

GPTQ (AutoGPTQ, GPTQModel): `qweight` [columns * bits / 32, rows] and `qzeros` [groups, rows * bits / 32] are int32
words of one stream of bits along the packed axis, the first code in the lowest bits; at 3 bits a code may lie across
two words. `scales` is [groups, rows], `g_idx` [columns] each column's group. A weight is `scale * (code - zero)`.
Version 1 (`checkpoint_format: gptq`, or none) stores `zero - 1`, version 2 (`gptq_v2`) `zero`.

AWQ (AutoAWQ, layout gemm): `qweight` [columns, rows / 8] and `qzeros` [groups, rows / 8], eight 4-bit codes a word in
the order 0 2 4 6 1 3 5 7; `scales` [groups, rows].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idp.compress.formats.checkpoint import Checkpoint
from idp.compress.formats.claims import Claim, Decompressed
from idp.errors import UserError

if TYPE_CHECKING:
    import torch

GPTQ_BITS = (2, 3, 4, 8)
AWQ_BITS = 4
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column whose code lies in the n-th four bits of a word
PACKED = ("qweight", "qzeros", "scales", "g_idx")


def read_gptq(
    checkpoint: Checkpoint, described: dict[str, Any], shapes: dict[str, list[int]], dtype: Any
) -> Decompressed:
    """A GPTQ checkpoint as plain weights.

    Args:
        checkpoint: the files.
        described: its quantisation config: `bits`, `group_size`, `desc_act`, `checkpoint_format`.
        shapes: of every linear layer's weight in the dense model, [rows, columns].
        dtype: of the weights that are made.

    Raises:
        UserError: a layer whose tensors do not fit the config or the dense model; it is named.
    """
    version = 2 if described.get("checkpoint_format") == "gptq_v2" else 1
    stated, mixed = described.get("bits"), bool(described.get("dynamic"))

    def layer(name: str, shape: list[int]) -> tuple[torch.Tensor, Claim]:
        rows, columns = shape
        words, zeros = checkpoint.tensor(f"{name}.qweight"), checkpoint.tensor(f"{name}.qzeros")
        bits = words.shape[0] * 32 / columns
        if bits not in GPTQ_BITS or words.shape[1] != rows:
            raise ValueError(f"qweight is {list(words.shape)}, which is {shape} at no number of bits of {GPTQ_BITS}")
        if bits != stated and not mixed:
            raise ValueError(f"qweight has {bits:g} bits, the config says {stated}")
        bits = int(bits)
        scales = checkpoint.tensor(f"{name}.scales").float()
        groups = _groups(checkpoint, name, columns, scales.shape[0], described.get("group_size", -1))
        codes = unpack(words, bits, columns, axis=0)
        zeros = unpack(zeros, bits, rows, axis=1)
        if version == 1:  # a zero point of 0 was stored as -1, whose lowest bits are all ones
            zeros = (zeros + 1) & ((1 << bits) - 1)
        weight = scales[groups] * (codes - zeros[groups])
        return weight.T.contiguous().to(dtype), Claim(bits, _shares(groups), checkpoint.bytes_under(name))

    return _read(checkpoint, f"gptq v{version}", layer, shapes, dtype)


def read_awq(
    checkpoint: Checkpoint, described: dict[str, Any], shapes: dict[str, list[int]], dtype: Any
) -> Decompressed:
    """An AWQ checkpoint in the gemm layout as plain weights; arguments and errors as for `read_gptq`."""
    stated = described.get("bits", described.get("w_bit", AWQ_BITS))
    if stated != AWQ_BITS:
        raise UserError(f"compressor.path={checkpoint.folder}: AWQ with {stated} bits is not read; 4 bits are")

    def layer(name: str, shape: list[int]) -> tuple[torch.Tensor, Claim]:
        rows, columns = shape
        words, zeros = checkpoint.tensor(f"{name}.qweight"), checkpoint.tensor(f"{name}.qzeros")
        if list(words.shape) != [columns, rows * AWQ_BITS // 32]:
            raise ValueError(f"qweight is {list(words.shape)}, which is not {shape} at 4 bits")
        scales = checkpoint.tensor(f"{name}.scales").float()
        size = described.get("group_size", described.get("q_group_size", -1))
        groups = _groups(checkpoint, name, columns, scales.shape[0], size)
        weight = scales[groups] * (unpack_awq(words) - unpack_awq(zeros)[groups])
        return weight.T.contiguous().to(dtype), Claim(AWQ_BITS, _shares(groups), checkpoint.bytes_under(name))

    return _read(checkpoint, "awq", layer, shapes, dtype)


def unpack(words: torch.Tensor, bits: int, count: int, axis: int) -> torch.Tensor:
    """The first `count` codes of a stream of bits along `axis` of int32 words [a, b]; int64, from 0 to 2^bits - 1."""
    import torch

    words = words.to(torch.int64).movedim(axis, -1) & 0xFFFFFFFF
    first = torch.arange(count) * bits
    word, shift = first // 32, first % 32
    # The next word above this one: a code that lies across both is then whole.
    following = (word + 1).clamp(max=words.shape[-1] - 1)
    both = words[..., word] | ((words[..., following] & 0xFF) << 32)
    return ((both >> shift) & ((1 << bits) - 1)).movedim(-1, axis)


def unpack_awq(words: torch.Tensor) -> torch.Tensor:
    """AWQ's int32 words [a, b] as codes [a, 8 b], int64 from 0 to 15."""
    import torch

    codes = torch.empty(*words.shape, len(AWQ_ORDER), dtype=torch.int64)
    for place, column in enumerate(AWQ_ORDER):
        codes[..., column] = (words.to(torch.int64) >> (AWQ_BITS * place)) & 0xF
    return codes.flatten(-2)


def _groups(checkpoint: Checkpoint, name: str, columns: int, count: int, size: int) -> torch.Tensor:
    """Each column's group [columns]: as `g_idx` says, else equal runs of columns.

    Raises:
        ValueError: it names a group for which there is no scale.
    """
    import torch

    if f"{name}.g_idx" in checkpoint:
        groups = checkpoint.tensor(f"{name}.g_idx").long()
    else:
        groups = torch.arange(columns) // (columns if size == -1 else size)
    if len(groups) != columns or int(groups.min()) < 0 or int(groups.max()) >= count:
        raise ValueError(f"{count} groups of scales do not cover its {columns} columns")
    return groups


def _shares(groups: torch.Tensor) -> int | torch.Tensor:
    """How many consecutive columns share a scale, or each column's group where they do not lie together."""
    import torch

    size = int((groups == groups[0]).sum())
    return size if torch.equal(groups, torch.arange(len(groups)) // size) else groups


def _read(checkpoint: Checkpoint, kind: str, layer: Any, shapes: dict[str, list[int]], dtype: Any) -> Decompressed:
    state, claims = {}, {}
    for name in checkpoint.names:
        owner, _, part = name.rpartition(".")
        if part == "qweight":
            if owner not in shapes:
                raise UserError(f"compressor.path={checkpoint.folder}: {owner} is no linear layer of the model")
            try:
                state[f"{owner}.weight"], claims[owner] = layer(owner, shapes[owner])
            except (ValueError, RuntimeError, IndexError) as error:
                raise UserError(f"compressor.path={checkpoint.folder}: {owner}: {error}") from error
        elif part not in PACKED or f"{owner}.qweight" not in checkpoint:
            tensor = checkpoint.tensor(name)
            # AutoGPTQ gives every layer a bias, of zeros where the model has none.
            if part == "bias" and f"{owner}.qweight" in checkpoint and not tensor.any():
                continue
            state[name] = tensor.to(dtype)
    if not claims:
        raise UserError(f"compressor.path={checkpoint.folder}: says {kind}, but no layer in it is quantised (qweight)")
    layer_bytes = {name: checkpoint.bytes_under(name) for name in shapes}
    return Decompressed(kind, state, claims, layer_bytes, checkpoint.disk_bytes)
