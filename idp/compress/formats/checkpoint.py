"""A folder of safetensors that somebody else wrote: its config, its tensors one at a time, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.errors import UserError

if TYPE_CHECKING:
    import torch

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
WORKING = "compressed-tensors, gptq, awq, GGUF files and plain weights"
# Where the quantisation is described if config.json does not: AutoGPTQ's file and AutoAWQ's.
BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
SPARSE_ON_DISK = ("sparse-bitmask", "sparse-24-bitmask", "marlin-24")


class Checkpoint:
    """The files of a checkpoint. Nothing is unpickled; tensors are read when they are asked for.

    Raises:
        UserError: no config, no safetensors, or more than one set of them.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = _json(folder / "config.json", f"compressor.path={folder}: not a model: it has no config.json")
        self.files = _weight_files(folder)
        self._headers = {file: _header(file) for file in self.files}
        self._places = {name: file for file, header in self._headers.items() for name in header}

    @property
    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._places)

    @property
    def disk_bytes(self) -> int:
        """What the weight files take."""
        return sum(file.stat().st_size for file in self.files)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def bytes_under(self, layer: str) -> int:
        """What the tensors of one layer take: codes, scales, zero points, all that is named `<layer>.*`."""
        found = [self._headers[file][name] for name, file in self._places.items() if name.startswith(f"{layer}.")]
        return sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in found)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, as it is stored.

        Raises:
            UserError: there is no such tensor.
        """
        from safetensors import safe_open

        if name not in self._places:
            raise UserError(f"compressor.path={self.folder}: has no tensor {name}")
        with safe_open(self._places[name], framework="pt") as file:
            return file.get_tensor(name)

    def quantization(self) -> dict[str, Any]:
        """How the checkpoint says that it is quantised, with `quant_method` always there; empty for plain weights.

        Raises:
            UserError: a method or a layout that is not read; it says which are.
        """
        described = self.config.get("quantization_config") or self.config.get("compression_config") or {}
        for name, method in BESIDE.items():
            if not described and (self.folder / name).is_file():
                described = {"quant_method": method, **_json(self.folder / name, "")}
        if described:
            self._refuse_unreadable(described)
        elif packed := next((name for name in self.names if name.endswith((".qweight", ".weight_packed"))), None):
            raise UserError(
                f"compressor.path={self.folder}: {packed} is packed, but neither config.json nor quantize_config.json"
                " says how"
            )
        return described

    def _refuse_unreadable(self, described: dict[str, Any]) -> None:
        where, method = f"compressor.path={self.folder}", described.get("quant_method")
        if method not in ("compressed-tensors", "gptq", "awq"):
            raise UserError(f"{where}: quant_method={method} is not read; these are: {WORKING}")
        marlin = described.get("is_marlin_format") or described.get("checkpoint_format") == "marlin"
        if method == "gptq" and marlin:
            raise UserError(
                f"{where}: GPTQ in Marlin's layout, which one GPU kernel reads; take the checkpoint in the gptq layout"
            )
        layout = described.get("checkpoint_format") or "gptq"
        if method == "gptq" and layout not in ("gptq", "gptq_v2"):
            raise UserError(f"{where}: checkpoint_format={layout} is not read; gptq and gptq_v2 are")
        layout = str(described.get("version", "gemm")).lower()
        if method == "awq" and layout != "gemm":
            raise UserError(f"{where}: AWQ in the {layout} layout is not read; gemm is")
        layout = (described.get("sparsity_config") or {}).get("format", "dense")
        if layout in SPARSE_ON_DISK or described.get("format") in SPARSE_ON_DISK:
            raise UserError(
                f"{where}: stored sparse ({described.get('format') if layout == 'dense' else layout}), which"
                " compressed-tensors no longer reads; take it in a dense or pack-quantized format"
            )
        groups = (described.get("config_groups") or {}).values()
        if any(((group or {}).get("weights") or {}).get("actorder") in ("group", "dynamic", True) for group in groups):
            raise UserError(
                f"{where}: actorder=group, which compressed-tensors no longer reads; take one made with"
                " actorder=static or weight, or the same model in the gptq layout"
            )


def elements(shape: list[int]) -> int:
    """How many numbers a tensor of this shape holds."""
    return math.prod(shape)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = sorted(set(_json(index, "")["weight_map"].values()))
        files = [folder / name for name in named if Path(name).name == name]
        if missing := [file.name for file in files if not file.is_file()]:
            raise UserError(f"compressor.path={folder}: {missing[0]} is missing, which its index names")
        return files
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:  # AutoGPTQ names it after bits and group size
        return found
    if found:
        raise UserError(
            f"compressor.path={folder}: {len(found)} safetensors files and no index; keep one set of weights there"
        )
    pickles = [file.name for pattern in PICKLES for file in sorted(folder.glob(pattern))]
    if pickles:
        raise UserError(
            f"compressor.path={folder}: its weights are pickled ({pickles[0]}), which could run code and is never"
            " read; take the checkpoint in safetensors"
        )
    gguf = [file.name for file in sorted(folder.glob("*.gguf"))]
    if gguf:
        raise UserError(f"compressor.path={folder}: a folder with a GGUF file; name the file: {folder / gguf[0]}")
    raise UserError(f"compressor.path={folder}: not a model: it has no safetensors")


def _header(file: Path) -> dict[str, dict[str, Any]]:
    """The header of a safetensors file: each tensor's dtype, shape and place (the format's own documentation)."""
    try:
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError("the header is longer than the file")
            header = json.loads(opened.read(length))
        return {name: entry for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as safetensors: {error}") from error


def _json(file: Path, missing: str) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(missing)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not JSON: {error}") from error
