"""GPTQ's and AWQ's packed integers as plain weights, without the GPU packages that transformers asks for.

GPTQ (AutoGPTQ, GPTQModel): `qweight` [columns * bits / 32, rows] and `qzeros` [groups, rows * bits / 32] are int32
words of one stream of bits along the packed axis, the first code in the lowest bits; at 3 bits a code may lie across
two words. `scales` is [groups, rows], `g_idx` [columns] each column's group. A weight is `scale * (code - zero)`.
Version 1 (`checkpoint_format: gptq`, or none) stores `zero - 1`, version 2 (`gptq_v2`) `zero`. Not every packer keeps
to what it states: a symmetric grid's zero is the middle code, which the stored zeros show, and any grid's is the one
that lies close to the dense weights. The last group is shorter where the group size does not divide the columns.

AWQ (AutoAWQ, layout gemm): `qweight` [columns, rows / 8] and `qzeros` [groups, rows / 8], eight 4-bit codes a word in
the order 0 2 4 6 1 3 5 7; `scales` [groups, rows].
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from idp.compress.formats.checkpoint import Checkpoint, plain
from idp.compress.formats.claims import Decompressed, FormatClaim
from idp.errors import UserError, lacks_memory

if TYPE_CHECKING:
    import torch

GPTQ_BITS = (2, 3, 4, 8)
AWQ_BITS = 4
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column whose code lies in the n-th four bits of a word
PACKED = ("qweight", "qzeros", "scales", "g_idx")
COMPARED = 8  # layers whose distance to the dense ones tells how zero points are stored
CLEARLY = 2.0  # one squared distance is this many times the other: a step of the grid is worth 4 and more


def read_gptq(
    checkpoint: Checkpoint,
    described: dict[str, Any],
    shapes: dict[str, list[int]],
    dtype: Any,
    dense: Callable[[str], torch.Tensor | None],
) -> Decompressed:
    """A GPTQ checkpoint as plain weights.

    Args:
        checkpoint: the files.
        described: its quantisation config: `bits`, `group_size`, `desc_act`, `sym`, `checkpoint_format`.
        shapes: of every linear layer's weight in the dense model, [rows, columns].
        dtype: of the weights that are made.
        dense: the dense model's weight of a layer, [rows, columns]; None where it cannot be had.

    Raises:
        UserError: a layer whose tensors do not fit the config or the dense model; it is named.
    """

    def packed(name: str) -> PackedWeight:
        return _packed(checkpoint, described, name, shapes[name])

    quantised = _quantised(checkpoint, shapes)
    near = _nearest(quantised, packed, dense)
    shown = _middle(checkpoint, quantised, shapes) if described.get("sym", True) else None
    version, note = _version(described, near, shown)

    def layer(name: str, shape: list[int]) -> tuple[torch.Tensor, FormatClaim]:
        found = packed(name)
        claim = FormatClaim(found.bits, _shares(found.groups), checkpoint.bytes_under(name))
        return found.weight(version).contiguous().to(dtype), claim

    read = _read(checkpoint, f"gptq v{version}", layer, shapes, dtype)
    read.notes += [note] if note else []
    return read


@dataclass(frozen=True)
class PackedWeight:
    """One GPTQ layer: `codes` [columns, rows] and stored `zeros` [groups, rows] as integers, `scales` [groups, rows],
    and each column's group [columns]."""

    bits: int
    codes: torch.Tensor
    zeros: torch.Tensor
    scales: torch.Tensor
    groups: torch.Tensor

    def weight(self, version: int) -> torch.Tensor:
        """The weight [rows, columns], float32, with the zero points read as those of `version`."""
        zeros = self.zeros
        if version == 1:  # a zero point of 0 was stored as -1, whose lowest bits are all ones
            zeros = (zeros + 1) & ((1 << self.bits) - 1)
        return (self.scales[self.groups] * (self.codes - zeros[self.groups])).T


def _packed(checkpoint: Checkpoint, described: dict[str, Any], name: str, shape: list[int]) -> PackedWeight:
    """A layer's tensors, unpacked.

    Raises:
        UserError: they do not fit the config or the dense model's layer.
    """
    rows, columns = shape
    stated, mixed = described.get("bits"), bool(described.get("dynamic"))
    with _naming(checkpoint, name):
        words, zeros, scales = _words(checkpoint, name)
        bits = words.shape[0] * 32 / columns
        if bits not in GPTQ_BITS or words.shape[1] != rows:
            raise ValueError(f"qweight is {list(words.shape)}, which is {shape} at no number of bits of {GPTQ_BITS}")
        if bits != stated and not mixed:
            raise ValueError(f"qweight has {bits:g} bits, the config says {stated}")
        bits = int(bits)
        size = described.get("group_size", -1)
        groups = _groups(checkpoint, name, columns, scales.shape[0], None if mixed else size)
        if described.get("desc_act") and len(scales) > 1 and f"{name}.g_idx" not in checkpoint:
            raise ValueError("desc_act orders its columns by a g_idx, which it does not have")
        if list(scales.shape) != [len(scales), rows] or list(zeros.shape) != [len(scales), -(-rows * bits // 32)]:
            raise ValueError(f"scales are {list(scales.shape)} and qzeros {list(zeros.shape)}, for {rows} rows")
        return PackedWeight(
            bits, unpack(words, bits, columns, axis=0), unpack(zeros, bits, rows, axis=1), scales, groups
        )


def _version(described: dict[str, Any], near: int | None, shown: int | None) -> tuple[int, str | None]:
    """How zero points are stored, 1 or 2, and what there is to say of it.

    Args:
        described: what the config states.
        near: the version in which the weights lie close to the dense ones.
        shown: the version in which the zero points of a symmetric grid are its middle code.
    """
    stated = 2 if described.get("checkpoint_format") == "gptq_v2" else 1
    version = near or shown or stated
    if near and shown and near != shown:
        return version, (
            f"its stored zero points are the middle codes of version {shown} of the format, but its weights are close"
            f" to the dense ones as version {near}: read as version {near}"
        )
    if version != stated:
        why = (
            "its weights are far closer to the dense ones so"
            if near
            else "they are the middle codes of symmetric grids"
        )
        return version, f"its zero points are not stored as checkpoint_format states; read as version {version}: {why}"
    if near is None and shown is None:
        return version, (
            "neither its zero points nor the dense weights tell how zero points are stored; read as checkpoint_format"
            f" states (version {version})"
        )
    return version, None


def _nearest(
    quantised: list[str], packed: Callable[[str], PackedWeight], dense: Callable[[str], torch.Tensor | None]
) -> int | None:
    """The version that lies clearly closer to the dense weights; None where none does, as after a rotation."""
    distances = {1: 0.0, 2: 0.0}
    for name in quantised[:: max(1, len(quantised) // COMPARED)][:COMPARED]:
        weight, found = dense(name), packed(name)
        if weight is None or list(weight.shape) != list(found.codes.T.shape):
            continue
        weight = weight.float()
        for version in distances:
            distances[version] += float(
                (found.weight(version) - weight).square().sum() / weight.square().sum().clamp(min=1e-30)
            )
    for version, other in ((1, 2), (2, 1)):
        if distances[version] * CLEARLY < distances[other]:
            return version
    return None


def _middle(checkpoint: Checkpoint, quantised: list[str], shapes: dict[str, list[int]]) -> int | None:
    """The version in which every stored zero point is the middle code; None where they are not all alike."""
    found = set()
    for name in quantised:
        rows, columns = shapes[name]
        bits = checkpoint.entries[f"{name}.qweight"].shape[0] * 32 // columns
        with _naming(checkpoint, name):
            zeros = unpack(checkpoint.tensor(f"{name}.qzeros"), bits, rows, axis=1)
            first = int(zeros.flatten()[0])
        same = bits in GPTQ_BITS and bool((zeros == first).all())
        found.add({2 ** (bits - 1) - 1: 1, 2 ** (bits - 1): 2}.get(first) if same else None)
    return found.pop() if len(found) == 1 else None


def read_awq(
    checkpoint: Checkpoint, described: dict[str, Any], shapes: dict[str, list[int]], dtype: Any
) -> Decompressed:
    """An AWQ checkpoint in the gemm layout as plain weights; arguments and errors as for `read_gptq`."""
    _quantised(checkpoint, shapes)
    stated = described.get("bits", described.get("w_bit", AWQ_BITS))
    if stated != AWQ_BITS:
        raise UserError(f"compressor.path={checkpoint.folder}: AWQ with {stated} bits is not read; 4 bits are")

    def layer(name: str, shape: list[int]) -> tuple[torch.Tensor, FormatClaim]:
        rows, columns = shape
        with _naming(checkpoint, name):
            words, zeros, scales = _words(checkpoint, name)
            if list(words.shape) != [columns, rows * AWQ_BITS // 32]:
                raise ValueError(f"qweight is {list(words.shape)}, which is not {shape} at 4 bits")
            size = described.get("group_size", described.get("q_group_size", -1))
            groups = _groups(checkpoint, name, columns, scales.shape[0], size)
            if list(scales.shape) != [len(scales), rows] or list(zeros.shape) != [len(scales), words.shape[1]]:
                raise ValueError(f"scales are {list(scales.shape)} and qzeros {list(zeros.shape)}, for {rows} rows")
            weight = scales[groups] * (unpack_awq(words) - unpack_awq(zeros)[groups])
        return weight.T.contiguous().to(dtype), FormatClaim(AWQ_BITS, _shares(groups), checkpoint.bytes_under(name))

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


@contextlib.contextmanager
def _naming(checkpoint: Checkpoint, name: str) -> Iterator[None]:
    """Says of which layer a fault is.

    Raises:
        UserError: for what does not fit inside.
    """
    try:
        yield
    except (ValueError, RuntimeError, IndexError) as error:
        if lacks_memory(error):
            raise
        raise UserError(f"compressor.path={checkpoint.folder}: {name}: {error}") from error


def _quantised(checkpoint: Checkpoint, shapes: dict[str, list[int]]) -> list[str]:
    """The names of the layers that are packed.

    Raises:
        UserError: there are none, or one is no linear layer of the dense model.
    """
    names = [name.removesuffix(".qweight") for name in checkpoint.names if name.endswith(".qweight")]
    if unknown := next((name for name in names if name not in shapes), None):
        raise UserError(f"compressor.path={checkpoint.folder}: {unknown} is no linear layer of the model")
    if not names:
        raise UserError(
            f"compressor.path={checkpoint.folder}: says that it is quantised, but no layer in it is packed (qweight)"
        )
    return names


def _words(checkpoint: Checkpoint, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A layer's qweight, qzeros and scales, of which the first two must be words and the third numbers.

    Raises:
        ValueError: they are not.
    """
    words, zeros, scales = (checkpoint.tensor(f"{name}.{part}") for part in ("qweight", "qzeros", "scales"))
    for part, tensor in (("qweight", words), ("qzeros", zeros)):
        if str(tensor.dtype) != "torch.int32" or tensor.dim() != 2:
            raise ValueError(f"{part} is {str(tensor.dtype)[6:]} {list(tensor.shape)}, not two-dimensional int32 words")
    if str(scales.dtype) not in ("torch.float16", "torch.bfloat16", "torch.float32") or scales.dim() != 2:
        raise ValueError(f"scales are {str(scales.dtype)[6:]} {list(scales.shape)}, not two-dimensional numbers")
    return words, zeros, scales.float()


def _groups(checkpoint: Checkpoint, name: str, columns: int, count: int, size: Any) -> torch.Tensor:
    """Each column's group [columns]: as `g_idx` says, else equal runs of columns, of which the last may be shorter.

    Args:
        checkpoint: the files.
        name: the layer's.
        columns: how many there are.
        count: of groups that have scales.
        size: columns that share a scale, -1 for all; None: only `count` is known.

    Raises:
        ValueError: the groups are not as many as the scales, or larger than they should be.
    """
    import torch

    if size is not None and (not isinstance(size, int) or not (size > 0 or size == -1)):
        raise ValueError(f"group_size={size} is no number of columns")
    width = -(-columns // count) if size is None else columns if size == -1 else min(size, columns)
    if -(-columns // width) != count:
        raise ValueError(f"{count} groups of scales do not cover its {columns} columns in groups of {width}")
    if f"{name}.g_idx" not in checkpoint:
        return torch.arange(columns) // width
    groups = checkpoint.tensor(f"{name}.g_idx")
    if groups.is_floating_point() or list(groups.shape) != [columns]:
        raise ValueError(
            f"g_idx is {str(groups.dtype)[6:]} {list(groups.shape)}, not a group for each of {columns} columns"
        )
    groups = groups.long()
    if count > 1 and not groups.any():  # written by packers that do not order columns
        return torch.arange(columns) // width
    if int(groups.min()) < 0 or int(groups.max()) >= count:
        raise ValueError(f"{count} groups of scales do not cover its {columns} columns: g_idx names others")
    sizes = torch.bincount(groups, minlength=count)
    if size is not None and int(sizes.max()) > width:
        raise ValueError(f"g_idx puts {int(sizes.max())} columns in a group, the config says {width}")
    return groups


def _shares(groups: torch.Tensor) -> int | torch.Tensor:
    """How many consecutive columns share a scale, or each column's group where they are not equal runs."""
    import torch

    size = int((groups == groups[0]).sum())
    runs = len(groups) % size == 0 and torch.equal(groups, torch.arange(len(groups)) // size)
    return size if runs else groups


def _read(checkpoint: Checkpoint, kind: str, layer: Any, shapes: dict[str, list[int]], dtype: Any) -> Decompressed:
    state, claims = {}, {}
    for name in checkpoint.names:
        owner, _, part = name.rpartition(".")
        if part == "qweight":
            state[f"{owner}.weight"], claims[owner] = layer(owner, shapes[owner])
        elif part not in PACKED or f"{owner}.qweight" not in checkpoint:
            tensor = checkpoint.tensor(name)
            # AutoGPTQ gives every layer a bias, of zeros where the model has none.
            if part == "bias" and f"{owner}.qweight" in checkpoint and not tensor.any():
                continue
            state[name] = plain(checkpoint, name, dtype)
    layer_bytes = {name: checkpoint.bytes_under(name) for name in shapes}
    return Decompressed(kind, state, claims, layer_bytes, checkpoint.disk_bytes)
