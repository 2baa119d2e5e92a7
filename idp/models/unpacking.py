"""Packed weights read as plain ones: integers, scales and zero points become the very numbers that were packed.

The packed form is compressed-tensors' `pack-quantized`, as `idp.compress.pack` writes it and transformers reads it.
Here it is unpacked tensor by tensor, into a model without the library's machinery: plain layers with plain weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.errors import UserError
from idp.models.weight_files import TensorEntry, WeightFiles
from idp.store import read_json

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

WORDS, SCALE, ZERO_POINT, SHAPE = "weight_packed", "weight_scale", "weight_zero_point", "weight_shape"
CHUNK = 1 << 24  # weights that are unpacked at a time, so that no second copy of a large matrix is held


@dataclass(frozen=True)
class PlainTensor:
    """A tensor that is stored as it is, and read when it is asked for: `tensor[...]`, as of a slice of safetensors."""

    entries: dict[str, TensorEntry]
    opened: dict[Path, Any]  # each file's reader; a header takes as long to read as many a tensor
    name: str

    def get_shape(self) -> list[int]:
        return list(self.entries[self.name].shape)

    def get_dtype(self) -> str:
        """By safetensors' name."""
        return self.entries[self.name].dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.opened[self.entries[self.name].file].get_tensor(self.name)[index]


@dataclass(frozen=True)
class PackedTensor:
    """A packed weight, which is unpacked when it is asked for; its dtype is that of its scales."""

    words: PlainTensor
    scale: PlainTensor
    zero_point: PlainTensor | None
    shape: PlainTensor
    bits: int

    def get_shape(self) -> list[int]:
        return self.shape[...].tolist()

    def get_dtype(self) -> str:
        return self.scale.get_dtype()

    def __getitem__(self, index: Any) -> torch.Tensor:
        zero_point = self.zero_point[...] if self.zero_point is not None else None
        return unpack(self.words[...], self.scale[...], zero_point, self.get_shape(), self.bits)[index]


def is_packed(files: WeightFiles) -> bool:
    """Whether a folder's weights are packed as they are read here."""
    return any(name.endswith(f".{WORDS}") for name in files.entries)


def tensors(files: WeightFiles) -> dict[str, PackedTensor | PlainTensor]:
    """Every tensor of a model folder, packed or not, by its name in the model; none is read yet.

    Raises:
        UserError: the folder's config does not say how many bits a packed weight has, or it is packed otherwise.
    """
    from safetensors import SafetensorError, safe_open

    bits = _bits(files) if is_packed(files) else 0
    try:
        opened = {file: safe_open(file, framework="pt") for file in files.files}
    except SafetensorError as error:
        raise UserError(f"{files.where}: cannot be read: {error}") from error
    plain = {name: PlainTensor(files.entries, opened, name) for name in files.entries}
    found: dict[str, PackedTensor | PlainTensor] = {}
    for name, tensor in plain.items():
        stem, _, part = name.rpartition(".")
        if part == WORDS:
            scale, zero_point, shape = (plain.get(f"{stem}.{other}") for other in (SCALE, ZERO_POINT, SHAPE))
            if scale is None or shape is None:
                raise UserError(f"{files.where}: {name} has no scale or shape beside it; take a complete copy")
            found[f"{stem}.weight"] = PackedTensor(tensor, scale, zero_point, shape, bits)
        elif not (part in (SCALE, ZERO_POINT, SHAPE) and f"{stem}.{WORDS}" in plain):
            found[name] = tensor
    return found


def plain_config(folder: Path, trust_remote_code: bool) -> PretrainedConfig:
    """The config of a model folder, as of plain weights: what it says of packing is left out."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def from_pretrained(folder: Path, *, trust_remote_code: bool, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """`AutoModelForCausalLM.from_pretrained` of a folder, whose weights are unpacked one by one where they are packed.

    Args:
        folder: the model folder.
        trust_remote_code: whether its own code may run.
        options: as transformers takes them.

    Returns:
        the model, and what was loaded (`output_loading_info`). Tensors that do not fit are named there.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    files = WeightFiles(folder, str(folder))
    if not is_packed(files):
        return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust_remote_code, **options)
    config = plain_config(folder, trust_remote_code)
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))
    model, about = kind.from_pretrained(None, config=config, state_dict=tensors(files), **options)
    model.name_or_path = model.config.name_or_path = str(folder)  # as if it had been given the folder
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, about


def unpack(
    words: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, shape: list[int], bits: int
) -> torch.Tensor:
    """`scale * (code - zero_point)` in the scale's own dtype, as compressed-tensors computes it.

    Args:
        words: [rows, ceil(columns * bits / 32)] int32; codes lie in it one after the other, the lowest bits first.
        scale: [rows, groups]; groups are equal runs of columns.
        zero_point: [ceil(rows * bits / 32), groups] int32, packed along the rows; None for zeros.
        shape: rows and columns.
        bits: of a code, 1 to 8.

    Returns:
        the weight [rows, columns].
    """
    import torch

    rows, columns = shape
    middle = 1 << (bits - 1)  # code and zero point are both stored with this added, which their difference has not
    if zero_point is None:
        offset = torch.full_like(scale, middle)
    else:
        offset = _codes(zero_point.T, rows, bits).T.to(scale.dtype)
    weight = torch.empty(rows, scale.shape[1], columns // scale.shape[1], dtype=scale.dtype, device=scale.device)
    step = max(1, CHUNK // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        codes = _codes(words[part], columns, bits).view(weight[part].shape)
        weight[part].copy_(codes).sub_(offset[part, :, None]).mul_(scale[part, :, None])
    return weight.view(rows, columns)


def _codes(words: torch.Tensor, columns: int, bits: int) -> torch.Tensor:
    """The codes in rows of int32 words, [rows, columns] uint8; every eight of them take `bits` bytes."""
    import torch

    stream = words.contiguous().view(torch.uint8)  # safetensors is little-endian, and so is every machine that reads it
    eights = -(-columns // 8)
    if stream.shape[1] < eights * bits:
        stream = torch.nn.functional.pad(stream, (0, eights * bits - stream.shape[1]))
    stream = stream[:, : eights * bits].reshape(-1, eights, bits)
    codes = torch.empty(*stream.shape[:2], 8, dtype=torch.uint8, device=words.device)
    for number in range(8):
        byte, shift = divmod(number * bits, 8)
        code = stream[..., byte] >> shift
        if shift + bits > 8:
            code |= stream[..., byte + 1] << (8 - shift)
        codes[..., number] = code & ((1 << bits) - 1)
    return codes.flatten(1)[:, :columns]


def _bits(files: WeightFiles) -> int:
    """Bits per packed weight, as the folder's config says.

    Raises:
        UserError: it does not, or the weights are packed in a way that is not read here.
    """
    config = read_json(files.folder / "config.json").get("quantization_config") or {}
    groups = list(config.get("config_groups", {}).values())
    if any(name.endswith(".weight_g_idx") for name in files.entries) or len(groups) != 1:
        raise UserError(f"{files.where}: packed in another way than idp packs; read it with compressor=external")
    return int(groups[0]["weights"]["num_bits"])
