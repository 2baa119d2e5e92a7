"""A GGUF file's tensors, each read and dequantised when it is asked for: no second copy of a model is in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.errors import UserError
from idp.models.gguf import rope
from idp.models.gguf.header import Header, TensorInfo

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

PLAIN = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


class GgufTensors(Mapping[str, "Tensor"]):
    """The tensors of a file by the model's own names; transformers takes them for a state dict.

    Args:
        header: the file's.
        model: the model that they are read into, under the names of the file's architecture; without weights.

    Raises:
        UserError: the file has a tensor that the model has no place for: transformers would drop it.
    """

    def __init__(self, header: Header, model: PreTrainedModel):
        from transformers.modeling_gguf_pytorch_utils import (
            TENSOR_PROCESSORS,
            TensorProcessor,
            get_gguf_hf_weights_map,
        )

        self.config: PretrainedConfig = model.config
        kind = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)
        self.processor = kind(config=model.config.to_dict())
        self.places: dict[str, str] = get_gguf_hf_weights_map(model, self.processor)
        for name in header.tensors:
            if name not in self.places and name not in rope.TENSORS:
                raise UserError(
                    f"{header.file}: it has a tensor {name}, for which {model.config.model_type} has no place"
                )
        self.file = header.file
        self.stored = {self.places[name]: (name, info) for name, info in header.tensors.items() if name in self.places}

    def __getitem__(self, name: str) -> Tensor:
        return Tensor(self, name, *self.stored[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


class Tensor:
    """One tensor; `tensor[...]` reads it, as of a slice of safetensors."""

    def __init__(self, tensors: GgufTensors, name: str, name_in_file: str, info: TensorInfo):
        self.tensors, self.name, self.name_in_file, self.info = tensors, name, name_in_file, info

    def __getitem__(self, _: Any) -> torch.Tensor:
        import gguf
        import numpy as np
        import torch

        apart: dict[str, torch.Tensor] = {}  # where transformers puts what it names by itself
        made = self.tensors.processor.process(
            weights=gguf.dequantize(stored(self.tensors.file, self.info), gguf.GGMLQuantizationType(self.info.kind)),
            name=self.name_in_file,
            tensor_key_mapping=self.tensors.places,
            parsed_parameters={"config": self.tensors.config.to_dict(), "tensors": apart},
        )
        if made.name is None:
            return apart[self.name]
        numbers = made.weights if made.weights.flags.writeable else np.copy(made.weights)  # a page of the file
        return torch.from_numpy(numbers)


def stored(file: Path, info: TensorInfo) -> np.ndarray:
    """A tensor as the file has it, as pages of the file: numbers in its shape, or rows of blocks in bytes.

    `gguf.GGUFReader` gives the same, after it has made an object of each token of the vocabulary, which takes longer
    than all weights of a small model.
    """
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType(info.kind)
    plain = np.dtype(PLAIN[kind.name]) if kind.name in PLAIN else None
    shape = info.shape if plain is not None else gguf.quant_shape_to_byte_shape(info.shape, kind)
    return np.memmap(file, plain or np.uint8, mode="r", offset=info.start, shape=tuple(shape))
