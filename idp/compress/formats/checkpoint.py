"""A folder of safetensors that somebody else wrote: its config, its tensors one at a time, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.errors import UserError
from idp.models import quantized
from idp.models.weight_files import HARMLESS, INDEX, PACKED, PICKLES, PLAIN, SINGLE, TensorEntry, WeightFiles
from idp.store import read_json

if TYPE_CHECKING:
    import torch

SPARSE_ON_DISK = ("sparse-bitmask", "sparse-24-bitmask", "marlin-24")
OFFLINE = ("weight_input", "weight_output")  # transforms that are in the weights already (compressed_tensors.transform)


class Checkpoint:
    """The files of a checkpoint. Nothing is unpickled; tensors are read when they are asked for.

    Raises:
        UserError: no config, no safetensors, or more than one set of them.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        where = f"compressor.path={folder}"
        if not (folder / "config.json").is_file():
            raise UserError(f"{where}: not a model: it has no config.json")
        self.config = read_json(folder / "config.json")
        self.weights = _weight_files(folder, where)
        self.entries: dict[str, TensorEntry] = self.weights.entries

    @property
    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self.entries)

    @property
    def disk_bytes(self) -> int:
        """What the weight files take."""
        return self.weights.disk_bytes

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def bytes_under(self, layer: str) -> int:
        """What the tensors of one layer take: codes, scales, zero points, all that is named `<layer>.*`."""
        return sum(entry.bytes for name, entry in self.entries.items() if name.startswith(f"{layer}."))

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, as it is stored.

        Raises:
            UserError: there is no such tensor.
        """
        return self.weights.tensor(name)

    def quantization(self) -> dict[str, Any]:
        """How the checkpoint says that it is quantised, with `quant_method` always there; empty for plain weights.

        Raises:
            UserError: a method or a layout that is not read; it says which are.
        """
        described = quantized.described(self.config, self.folder)
        if described:
            self._refuse_unreadable(described)
        elif packed := next((name for name in self.names if PACKED.search(name)), None):
            raise UserError(
                f"compressor.path={self.folder}: {packed} is packed, but neither config.json nor quantize_config.json"
                " says how"
            )
        return described

    def _refuse_unreadable(self, described: dict[str, Any]) -> None:
        where, method = f"compressor.path={self.folder}", described.get("quant_method")
        quantized.refuse_unread(where, described)
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
        self._refuse_online(described.get("transform_config"))

    def _refuse_online(self, transforms: Any) -> None:
        """Refuses rotations of activations, which plain weights cannot carry (R3 and R4 of SpinQuant, QuIP's)."""
        groups = (transforms or {}).get("config_groups") or {}
        for name, group in groups.items():
            for part in (group or {}).get("apply") or []:
                if str(part.get("location")).lower() not in OFFLINE:
                    raise UserError(
                        f"compressor.path={self.folder}: transform_config: {name} rotates activations as the model runs"
                        f" (location={part.get('location')}), which is not done here; take a checkpoint whose"
                        " transforms are all in its weights"
                    )


def plain(checkpoint: Checkpoint, name: str, dtype: Any) -> torch.Tensor:
    """A tensor that is not quantised: numbers in `dtype`, or whole numbers and masks as they are.

    Raises:
        UserError: it is a weight and no plain number.
    """
    entry = checkpoint.entries[name]
    weight = name.endswith((".weight", ".bias")) and len(entry.shape) < 4  # GPT-2 once called its causal mask a bias
    if weight and entry.dtype not in PLAIN and not HARMLESS.search(name):
        raise UserError(
            f"compressor.path={checkpoint.folder}: {name} is stored as {entry.dtype}, and no config says how"
        )
    tensor = checkpoint.tensor(name)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _weight_files(folder: Path, where: str) -> WeightFiles:
    """The checkpoint's safetensors: by the usual names, or the only one there is. Nothing is ever unpickled."""
    if not (folder / SINGLE).is_file() and not (folder / INDEX).is_file():
        found = sorted(folder.glob("*.safetensors"))
        if len(found) > 1:
            raise UserError(f"{where}: {len(found)} safetensors files and no index; keep one set of weights there")
        if found:  # AutoGPTQ names it after bits and group size
            return WeightFiles(folder, where, found)
        pickles = [file.name for pattern in PICKLES for file in sorted(folder.glob(pattern))]
        if pickles:
            raise UserError(
                f"{where}: its weights are pickled ({pickles[0]}), which could run code and is never read; take the"
                " checkpoint in safetensors"
            )
        gguf = [file.name for file in sorted(folder.glob("*.gguf"))]
        if gguf:
            raise UserError(f"{where}: a folder with a GGUF file; name the file: {folder / gguf[0]}")
        raise UserError(f"{where}: not a model: it has no safetensors")
    return WeightFiles(folder, where)
