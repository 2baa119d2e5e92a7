"""The weight files of a model folder: which of them are read, what their headers say, and single tensors of them.

Of several sets transformers reads `model.safetensors`, then the shards of an index, then pickled weights; so does
everything here. A header is a few kilobytes: a file that is cut short, an index that is not that of its shards and
weights that are packed are found without reading a weight.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from idp.errors import UserError
from idp.store import read_json

if TYPE_CHECKING:
    import torch

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# The format's own names (safetensors' README), with bits per number.
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "C64": 64}
BITS |= {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}
BITS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}
PLAIN = ("F64", "F32", "F16", "BF16")  # what a weight that is not quantised is stored as
# What quantisers call the parts of a packed weight: GPTQ and AWQ, compressed-tensors, fp8, bitsandbytes, mxfp4, HQQ,
# AQLM, quanto.
PACKED = re.compile(
    r"\.(qweight|weight_packed|weight_scale(_inv)?|weight_zero_point|SCB|W_q|codebooks)$"
    r"|\.weight\.(absmax|quant_map|quant_state\..*)$|_proj_(blocks|scales)$|\.weight\._(data|scale)$"
)


# Tensors that a text model does without: buffers that older versions saved and newer ones compute, and the parts of a
# larger model whose text part is read. What a class itself ignores need not be here.
HARMLESS = re.compile(
    r"(^|\.)rotary_emb\.(inv_freq|(cos|sin)_cached)$"
    r"|(^|\.)position_ids$"
    r"|(^|\.)(de|en)coder\.version$"
    r"|^((language_)?model\.)?(vision_tower|vision_model|visual|vision_embed_tokens|embed_vision|multi_modal_projector"
    r"|mm_projector|image_newline|audio_tower|embed_audio)(\.|$)"
    r"|^(model\.)?mtp(_\w+)?\."
)


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a safetensors file: where it is, and what its header says of it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    bytes: int


class WeightFiles:
    """The weight files of a folder, as transformers would read them.

    Args:
        folder: the model folder.
        where: what a fault begins with, such as `model.path=...`.
        files: those to read where they are not named as usual.

    Raises:
        UserError: there are none, one is missing or cut short, or the index is not that of its shards.
    """

    def __init__(self, folder: Path, where: str, files: list[Path] | None = None):
        self.folder, self.where = folder, where
        if (folder / "adapter_config.json").is_file():
            raise UserError(
                f"{where}: an adapter lies beside the weights (adapter_config.json), and loading would put it on them;"
                " merge it first, or keep it in a folder of its own"
            )
        self.index: dict[str, str] | None = None
        self.index_file: Path | None = None
        self.files = self._find() if files is None else files
        self.pickled = bool(self.files) and self.files[0].suffix != ".safetensors"

    @cached_property
    def entries(self) -> dict[str, TensorEntry]:
        """Every tensor by name; empty for pickled weights, which have no headers.

        Raises:
            UserError: a file is damaged, or the index is not that of its shards.
        """
        found: dict[str, TensorEntry] = {}
        if self.pickled:
            return found
        for file in self.files:
            for name, entry in read_header(file).items():
                if name in found:
                    raise UserError(f"{self.where}: {name} is in {found[name].file.name} and in {file.name}")
                found[name] = entry
        self._check_index(found)
        return found

    @property
    def disk_bytes(self) -> int:
        """What the weight files take."""
        return sum(file.stat().st_size for file in self.files)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, as it is stored.

        Raises:
            UserError: there is no such tensor, or its file cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        if name not in self.entries:
            raise UserError(f"{self.where}: has no tensor {name}")
        entry = self.entries[name]
        try:
            with safe_open(entry.file, framework="pt") as file:
                return file.get_tensor(name)
        except SafetensorError as error:
            raise UserError(f"{entry.file}: {name} cannot be read: {error}") from error

    def empty(self) -> dict[str, torch.Tensor]:
        """Every tensor without its numbers, on the `meta` device. Of pickled weights too, whose shapes are unpickled.

        Raises:
            UserError: a file is damaged.
        """
        import torch

        if not self.pickled:
            return {
                name: torch.empty(entry.shape, dtype=_dtype(entry), device="meta")
                for name, entry in self.entries.items()
            }
        found: dict[str, torch.Tensor] = {}
        for file in self.files:
            try:
                found |= torch.load(file, map_location="meta", weights_only=True)
            except Exception as error:  # a zip file, a pickle or a storage that is damaged: each library's own errors
                raise UserError(
                    f"{file}: cannot be read as PyTorch weights ({type(error).__name__}): it is damaged, or holds more"
                    " than tensors"
                ) from error
        return found

    def _find(self) -> list[Path]:
        if (named := self._named()) is not None:
            return self._shards(named) if named.endswith(".index.json") else [self.folder / named]
        if (self.folder / SINGLE).is_file():
            return [self.folder / SINGLE]
        if (self.folder / INDEX).is_file():
            return self._shards(INDEX)
        if (self.folder / PICKLED).is_file():
            return [self.folder / PICKLED]
        if (self.folder / PICKLED_INDEX).is_file():
            return self._shards(PICKLED_INDEX)
        return []

    def _named(self) -> str | None:
        """The file that config.json names as the model's weights, which transformers then reads."""
        config = self.folder / "config.json"
        named = read_json(config).get("transformers_weights") if config.is_file() else None
        inside = isinstance(named, str) and Path(named).name == named and (self.folder / named).is_file()
        if named is not None and not inside:
            raise UserError(f"{self.where}: transformers_weights={named} in config.json is no file of the folder")
        return named

    def _shards(self, index: str) -> list[Path]:
        described = read_json(self.folder / index)
        places = described.get("weight_map")
        if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
            raise UserError(f"{self.where}: {index} has no weight_map from tensors to files; take a complete copy")
        if outside := next((name for name in sorted(set(places.values())) if Path(name).name != name), None):
            raise UserError(f"{self.where}: {index} names {outside}, which is no file of the folder")
        files = [self.folder / name for name in sorted(set(places.values()))]
        if missing := [file.name for file in files if not file.is_file()]:
            raise UserError(f"{self.where}: {missing[0]} is missing, which its index names; take a complete copy")
        self.index, self.index_file = places, self.folder / index
        return files

    def _check_index(self, found: dict[str, TensorEntry]) -> None:
        for name, file in sorted((self.index or {}).items()):
            if name not in found or found[name].file.name != file:
                raise UserError(
                    f"{self.where}: {INDEX} says that {name} is in {file}, where it is not; take a complete copy"
                )
        for name, entry in sorted(found.items()):
            if self.index is not None and name not in self.index and not HARMLESS.search(name):
                raise UserError(
                    f"{self.where}: {entry.file.name} has a tensor {name} that {INDEX} does not name; they are of"
                    " two checkpoints"
                )


def read_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file, from its header.

    Raises:
        UserError: it is no safetensors file, is cut short, or a tensor's place is not that of its shape.
    """
    try:
        size = file.stat().st_size
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > size - 8:
                raise ValueError("the header is longer than the file")
            header = json.loads(opened.read(length))
        entries, end = {}, 0
        for name, about in header.items():
            if name == "__metadata__":
                continue
            dtype, shape, (start, stop) = about["dtype"], tuple(map(int, about["shape"])), about["data_offsets"]
            if dtype in BITS and (stop - start) * 8 != math.prod(shape) * BITS[dtype]:
                raise ValueError(f"{name} has {stop - start} bytes, which is not {dtype} {list(shape)}")
            entries[name], end = TensorEntry(file, dtype, shape, stop - start), max(end, stop)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: cannot be read as safetensors: {_line(error)}") from error
    if size != 8 + length + end:
        raise UserError(
            f"{file}: cannot be read as safetensors: it has {size:,} bytes and should have {8 + length + end:,}; the"
            " download or copy was cut short"
        )
    return entries


def _dtype(entry: TensorEntry) -> torch.dtype:
    import torch

    names = {"BOOL": "bool", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
    name = names.get(entry.dtype) or entry.dtype.replace("U", "uint").replace("I", "int").replace("F", "float")
    return getattr(torch, name, torch.uint8)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
