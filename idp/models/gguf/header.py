"""The header of a GGUF file: its metadata and the names of its tensors, read without its weights.

The layout is that of the format's specification (ggml's docs/gguf.md), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idp.errors import UserError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
FLOAT32 = 0
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

# Keys that change nothing at this value; at any other, an architecture must read them.
NEUTRAL = {
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.sliding_window": 0,
    "attn_logit_softcapping": 0.0,
    "embedding_scale": 1.0,
    "expert_count": 0,
    "expert_feed_forward_length": 0,
    "expert_shared_count": 0,
    "expert_used_count": 0,
    "final_logit_softcapping": 0.0,
    "leading_dense_block_count": 0,
    "logit_scale": 1.0,
    "nextn_predict_layers": 0,
    "pooling_type": 0,
    "residual_scale": 1.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.factor": 1.0,
    "tensor_data_layout": "Meta AI original pth",
    "use_parallel_residual": False,
}


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor is: its shape (outermost dimension first), its type (gguf.GGMLQuantizationType), its place."""

    shape: tuple[int, ...]
    kind: int
    start: int  # byte in the file


# Keys that change nothing that is computed.
HARMLESS = ("vocab_size", "rope.scaling.finetuned", "rope.scaling.original_context_length", "rope.dimension_count")


@dataclass(frozen=True)
class Header:
    """What a GGUF file says beside its weights."""

    file: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    @property
    def architecture(self) -> str:
        """`general.architecture`: llama.cpp's name for the function."""
        return str(self.metadata["general.architecture"])

    def get(self, name: str, default: Any = None) -> Any:
        """The value of `<architecture>.<name>`."""
        return self.metadata.get(f"{self.architecture}.{name}", default)

    def token(self, name: str, default: Any = None) -> Any:
        """The value of `tokenizer.ggml.<name>`."""
        return self.metadata.get(f"tokenizer.ggml.{name}", default)

    def numbers(self, name: str) -> list[float]:
        """The values of a small tensor that is kept in single precision.

        Raises:
            UserError: it is kept in another way.
        """
        tensor = self.tensors[name]
        if tensor.kind != FLOAT32 or len(tensor.shape) != 1:
            raise UserError(f"{self.file}: {name} is not a row of single-precision numbers")
        with open(self.file, "rb") as opened:
            opened.seek(tensor.start)
            return list(struct.unpack(f"<{tensor.shape[0]}f", opened.read(4 * tensor.shape[0])))


def read(file: Path) -> Header:
    """The header of a GGUF file that holds a whole model.

    Raises:
        UserError: it is not a GGUF file, is cut off, or is one part of a model that was split.
    """
    try:
        with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            metadata, tensors = _parse(content)
    except (OSError, ValueError, TypeError, KeyError, OverflowError, ZeroDivisionError, struct.error) as error:
        raise UserError(f"{file}: cannot be read as a GGUF model: {error or type(error).__name__}") from error
    _refuse_parts(file, metadata)
    if "general.architecture" not in metadata:
        raise UserError(f"{file}: cannot be read as a GGUF model: it does not say its general.architecture")
    return Header(file, metadata, tensors)


def _parse(content: mmap.mmap) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    if content[:4] != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version, tensor_count, value_count = struct.unpack_from("<IQQ", content, 4)
    if version not in VERSIONS:
        raise ValueError(f"version {version} of the format is not read (little-endian versions 2 and 3 are)")
    place, metadata, found = 24, {}, []
    for _ in range(value_count):
        key, place = _string(content, place)
        if key in metadata:
            raise ValueError(f"it says {key} twice")
        (kind,) = struct.unpack_from("<I", content, place)
        metadata[key], place = _value(content, place + 4, kind)
    for _ in range(tensor_count):
        name, place = _string(content, place)
        (dimensions,) = struct.unpack_from("<I", content, place)
        *shape, kind, offset = struct.unpack_from(f"<{dimensions}QIQ", content, place + 4)
        found.append((name, tuple(reversed(shape)), kind, offset))
        place += 4 + 8 * dimensions + 12
    step = int(metadata.get("general.alignment", 32))
    data = -(-place // step) * step
    tensors = {name: TensorInfo(shape, kind, data + offset) for name, shape, kind, offset in found}
    if len(tensors) < len(found):
        raise ValueError("it has two tensors of one name")
    if any(tensor.start >= len(content) for tensor in tensors.values()):
        raise ValueError("the file is cut off")
    return metadata, tensors


def _value(content: mmap.mmap, place: int, kind: int) -> tuple[Any, int]:
    if kind == STRING:
        return _string(content, place)
    if kind != ARRAY:
        number = struct.Struct("<" + NUMBERS[kind])
        return number.unpack_from(content, place)[0], place + number.size
    kind, count = struct.unpack_from("<IQ", content, place)
    place += 12
    if count > len(content) - place:  # each element takes a byte at least
        raise ValueError("the file is cut off")
    if kind in NUMBERS:
        numbers = struct.Struct(f"<{count}{NUMBERS[kind]}")
        return list(numbers.unpack_from(content, place)), place + numbers.size
    if kind == STRING:
        return _strings(content, place, count)
    values = []
    for _ in range(count):
        value, place = _value(content, place, kind)
        values.append(value)
    return values, place


def _strings(content: mmap.mmap, place: int, count: int) -> tuple[list[str], int]:
    """Many strings one after the other, as a vocabulary of a quarter of a million is: the loop that takes the time."""
    values, length_of = [], struct.Struct("<Q").unpack_from
    for _ in range(count):
        start = place + 8
        place = start + length_of(content, place)[0]
        values.append(content[start:place].decode("utf-8", "replace"))
    if place > len(content):
        raise ValueError("the file is cut off")
    return values, place


def _string(content: mmap.mmap, place: int) -> tuple[str, int]:
    values, place = _strings(content, place, 1)
    return values[0], place


def _refuse_parts(file: Path, metadata: dict[str, Any]) -> None:
    """A model in several files: llama.cpp writes the count into each, and names them -00001-of-0000N."""
    count, number = int(metadata.get("split.count", 1)), int(metadata.get("split.no", 0)) + 1
    if count <= 1 and (named := SPLIT_NAME.fullmatch(file.name)):
        count, number = int(named["count"]), int(named["number"])
    if count > 1:
        raise UserError(
            f"{file}: part {number} of a model that is split into {count} files; merge them into one"
            " (llama-gguf-split --merge <first part> <whole.gguf>) and name that"
        )


class HeaderReader:
    """Reads a file's `<architecture>.*` keys, and remembers which."""

    def __init__(self, header: Header):
        self.header, self.where = header, f"{header.file}"
        self._read: set[str] = set()

    def __call__(self, name: str, *default: Any) -> Any:
        """The value of `<architecture>.<name>`.

        Raises:
            UserError: it is not there, and there is no default.
        """
        self._read.add(name)
        value = self.header.get(name)
        if value is None and not default:
            raise UserError(f"{self.where}: it does not say {self.header.architecture}.{name}")
        return default[0] if value is None else value

    def whole(self, name: str, *default: Any) -> int:
        """A number that is the same for every layer.

        Raises:
            UserError: it is missing, or differs from layer to layer.
        """
        value = self(name, *default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise UserError(f"{self.where}: {name} differs from layer to layer ({value[:4]}...), which is not read")
            value = value[0]
        return int(value)

    def refuse_unread(self) -> None:
        """Refuses what the file says of the function and nobody read.

        Raises:
            UserError: names the first such key.
        """
        prefix = f"{self.header.architecture}."
        for key, value in self.header.metadata.items():
            name = key.removeprefix(prefix)
            if not key.startswith(prefix) or name in self._read or name in HARMLESS:
                continue
            if name in NEUTRAL and value == NEUTRAL[name]:
                continue
            what = "a mixture of experts" if name.startswith("expert_") else f"{key}={str(value)[:40]}"
            raise UserError(
                f"{self.where}: {what} is not read from GGUF files, and the model would be another without it; take it"
                " as safetensors"
            )
