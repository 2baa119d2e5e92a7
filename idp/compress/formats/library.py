"""Formats that transformers reads itself: compressed-tensors, GGUF files, and plain weights."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.compress.formats.checkpoint import Checkpoint, plain
from idp.compress.formats.claims import Decompressed, FormatClaim
from idp.compress.terminal import quiet
from idp.errors import UserError
from idp.models import weights
from idp.models.gguf import header as headers
from idp.models.gguf import model as ggufs

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

# GGUF types of one width with the columns that share a scale (ggml-quants.h): 2^bits values at most in such a block.
GGUF_BLOCKS = {
    "Q4_0": (4, 32),
    "Q4_1": (4, 32),
    "Q5_0": (5, 32),
    "Q5_1": (5, 32),
    "Q8_0": (8, 32),
    "Q2_K": (2, 16),
    "Q3_K": (3, 16),
    "Q4_K": (4, 32),
    "Q5_K": (5, 32),
    "Q6_K": (6, 16),
    "IQ4_NL": (4, 32),
    "IQ4_XS": (4, 32),
}
# What quantised activations and caches leave in a compressed-tensors checkpoint.
ACTIVATION_SCALES = re.compile(r"\.([qkv]|input|output)_(scale|zero_point|global_scale|g_idx)$")
GGUF_FLOATS = ("F64", "F32", "F16", "BF16")


def read_plain(checkpoint: Checkpoint, layers: list[str], dtype: Any) -> Decompressed:
    """Weights that are plain numbers already, pruned perhaps.

    Args:
        checkpoint: the files.
        layers: the linear layers, whose sizes are asked for.
        dtype: of the weights that are made.
    """
    state = {name: plain(checkpoint, name, dtype) for name in checkpoint.names}
    sizes = {name: checkpoint.bytes_under(name) for name in layers}
    return Decompressed("plain", state, {}, sizes, checkpoint.disk_bytes)


def read_compressed_tensors(checkpoint: Checkpoint, layers: list[str], trust_remote_code: bool) -> Decompressed:
    """A compressed-tensors checkpoint, decompressed by transformers in the dtype that it was written in.

    Raises:
        UserError: it cannot be read, or lacks a tensor.
    """
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    try:
        with quiet(), weights.silent(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You passed `quantization_config`")
            model, about = AutoModelForCausalLM.from_pretrained(
                checkpoint.folder,
                dtype="auto",
                trust_remote_code=trust_remote_code,
                quantization_config=CompressedTensorsConfig(dequantize=True),
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"compressor.path={checkpoint.folder}: cannot be decompressed: {_line(error)}") from error
    _check_tensors(checkpoint, about, model.config)
    claims: dict[str, Any] = {}
    notes: list[str] = []
    for name, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None and scheme.weights is not None:
            _check_scales(checkpoint, name, list(module.weight.shape), scheme.weights)
            claims[name] = FormatClaim(scheme.weights.num_bits, _shares(scheme.weights), checkpoint.bytes_under(name))
        if scheme is not None and scheme.input_activations is not None and not notes:
            notes.append("its activations are quantised as well by its makers; here its weights alone are")
    sizes = {name: checkpoint.bytes_under(name) for name in layers}
    kind = f"compressed-tensors {checkpoint.config.get('quantization_config', {}).get('format', '')}".strip()
    return Decompressed(kind, _plain_state(model), claims, sizes, checkpoint.disk_bytes, notes)


def _check_tensors(checkpoint: Checkpoint, about: dict[str, Any], config: Any) -> None:
    """Refuses a checkpoint in which a tensor is missing, misshapen or left over.

    Raises:
        UserError: names it.
    """
    where = f"compressor.path={checkpoint.folder}"
    for what in ("missing_keys", "mismatched_keys"):
        for name in sorted(map(str, about[what])):
            raise UserError(f"{where}: {what.replace('_keys', '')} tensor: {name}")
    for name in sorted(map(str, about["unexpected_keys"])):
        if not ACTIVATION_SCALES.search(name) and not weights.harmless(name, config, None):
            raise UserError(f"{where}: it has a tensor {name}, for which the model has no place")


def _check_scales(checkpoint: Checkpoint, name: str, shape: list[int], quantised: Any) -> None:
    """Refuses scales that are not of the shape that the config means: others would be broadcast without a word.

    Raises:
        UserError: names the layer.
    """
    entry = checkpoint.entries.get(f"{name}.weight_scale")
    rows, columns = shape[-2:]
    size = quantised.group_size if quantised.strategy in ("group", "tensor_group") else columns
    if entry is None or quantised.strategy not in ("group", "tensor_group", "channel") or not size:
        return
    if list(entry.shape) not in ([rows, -(-columns // size)], [rows] if size == columns else []):
        raise UserError(
            f"compressor.path={checkpoint.folder}: {name}: weight_scale is {list(entry.shape)}, for {shape} in groups"
            f" of {size}"
        )


def read_gguf(file: Path, layers: list[str], dtype: Any) -> Decompressed:
    """A GGUF file; its widths are those of its tensors' types, which may differ from layer to layer.

    Args:
        file: the file.
        layers: the linear layers, which must all be in it.
        dtype: of the weights that are made.

    Raises:
        UserError: it cannot be read, or a layer is not in it under a name that is known.
    """
    import gguf

    reader = gguf.GGUFReader(file)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    named = ggufs.names(headers.read(file), layers)
    claims: dict[str, Any] = {}
    sizes: dict[str, Any] = {}
    types: dict[str, Any] = {}
    for layer in layers:
        tensor = tensors.get(named.get(layer, ""))
        if tensor is None:
            raise UserError(f"compressor.path={file}: {layer} is not in it")
        kind = tensor.tensor_type.name
        types[kind] = types.get(kind, 0) + 1
        sizes[layer] = int(tensor.n_bytes)
        if kind not in GGUF_FLOATS:
            bits, block = GGUF_BLOCKS.get(kind, (None, -1))
            claims[layer] = FormatClaim(bits, block, int(tensor.n_bytes))
    kinds = ", ".join(f"{count} x {kind}" for kind, count in sorted(types.items()))
    model = ggufs.open_weights(file, dtype)
    return Decompressed(f"GGUF ({kinds})", _plain_state(model), claims, sizes, file.stat().st_size)


def _shares(weights: Any) -> int | str:
    """What shares a scale in a layer of a compressed-tensors checkpoint."""
    if weights.strategy == "tensor":
        return "tensor"
    if weights.strategy == "block":
        return int(weights.block_structure[1])
    return int(weights.group_size) if weights.group_size else -1


def _plain_state(model: PreTrainedModel) -> dict[str, Any]:
    """Parameters as any model of this class has them, without what a quantiser left beside them."""
    plain = _bare(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name in plain}


def _bare(model: PreTrainedModel) -> set[str]:
    import torch

    with torch.device("meta"):
        empty: nn.Module = type(model)(model.config)
    return set(empty.state_dict())


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:300] or type(error).__name__
