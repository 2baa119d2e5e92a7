"""Weights written tensor by tensor: the files of `idp.models.weights.save`, of a model that is nowhere in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from idp.errors import UserError
from idp.models import weights
from idp.models.weight_files import INDEX, SINGLE, WeightFiles

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SHARD = "50GB"  # as transformers cuts what it saves
NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def save(model: PreTrainedModel, folder: Path, tensors: Mapping[str, Any], where: str, shard: str = SHARD) -> None:
    """Writes a model whose weights are read one at a time.

    Args:
        model: the model without weights, on the `meta` device, in the dtype that is written.
        folder: where to.
        tensors: by name, what gives a tensor for `tensor[...]`; all that the model needs.
        where: what a fault of them begins with, such as their file.
        shard: the largest file.

    Raises:
        UserError: a tensor is missing or of another shape, or what is on disk is not what was written.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    tied = getattr(model, "all_tied_weights_keys", None) or {}
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    for name in state:
        if name not in tensors:
            raise UserError(f"{where}: it has no tensor {name}, which the model needs; take a complete copy")
    save_settings(model, folder)
    split = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=shard
    )
    for file, names in split.filename_to_tensors.items():
        _write(folder / file, {name: state[name] for name in names}, tensors, where)
    if split.is_sharded:
        about = {"total_parameters": model.num_parameters(), **split.metadata}
        index = {"metadata": about, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    weights.check_files(WeightFiles(folder, str(folder)), model, type(model.config).from_pretrained(folder))


def save_settings(model: PreTrainedModel, folder: Path) -> None:
    """Writes a model's config and generation settings as they are written with its weights."""
    import torch

    weights.save(model, folder, state={"none": torch.zeros(1)}, check=False)
    (folder / SINGLE).unlink()


def _write(file: Path, shapes: dict[str, torch.Tensor], tensors: Mapping[str, Any], where: str) -> None:
    """One file of safetensors, byte for byte as the library lays it out: the widest numbers first, then by name."""
    order = sorted(shapes, key=lambda name: (-shapes[name].element_size(), name))
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        start, end = end, end + shapes[name].nbytes
        kind = NAMES[str(shapes[name].dtype).removeprefix("torch.")]
        described[name] = {"dtype": kind, "shape": list(shapes[name].shape), "data_offsets": [start, end]}
    header = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    digests = []
    with open(file, "wb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        for name in order:
            digests.append(_write_tensor(out, where, name, shapes[name], tensors[name]))
    with open(file, "rb") as written:
        written.seek(8 + len(header))
        for name, digest in zip(order, digests, strict=True):
            if hashlib.blake2b(written.read(shapes[name].nbytes)).digest() != digest:
                raise UserError(f"{file}: {name} on disk is not what was written; the disk or memory may be at fault")


def _write_tensor(out: BinaryIO, where: str, name: str, like: torch.Tensor, source: Any) -> bytes:
    """Writes one tensor in the dtype that the model has it in; the digest of its bytes."""
    import torch

    tensor = source[...]
    if tensor.shape != like.shape:
        raise UserError(f"{where}: {name} is {list(tensor.shape)} in the file and {list(like.shape)} in the model")
    content = tensor.to(like.dtype).contiguous().view(-1).view(torch.uint8).numpy()
    out.write(content)
    return hashlib.blake2b(content).digest()
