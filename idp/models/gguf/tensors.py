"""A GGUF file's tensors, each read and dequantised when it is asked for: no second copy of a model is in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from idp.errors import UserError
from idp.models.gguf import rope
from idp.models.gguf.header import Header

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


class GgufTensors(Mapping[str, "Tensor"]):
    """The tensors of a file by the model's own names; transformers takes them for a state dict.

    Args:
        header: the file's.
        model: the model that they are read into, under the names of the file's architecture; without weights.

    Raises:
        UserError: the file has a tensor that the model has no place for: transformers would drop it.
    """

    def __init__(self, header: Header, model: PreTrainedModel):
        import gguf
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
        read = (tensor for tensor in gguf.GGUFReader(header.file).tensors if tensor.name in self.places)
        self.stored = {self.places[tensor.name]: tensor for tensor in read}

    def __getitem__(self, name: str) -> Tensor:
        return Tensor(self, name, self.stored[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


class Tensor:
    """One tensor; `tensor[...]` reads it, as of a slice of safetensors."""

    def __init__(self, tensors: GgufTensors, name: str, stored: Any):
        self.tensors, self.name, self.stored = tensors, name, stored

    def __getitem__(self, _: Any) -> torch.Tensor:
        import gguf
        import numpy as np
        import torch

        apart: dict[str, torch.Tensor] = {}  # where transformers puts what it names by itself
        made = self.tensors.processor.process(
            weights=gguf.dequantize(self.stored.data, self.stored.tensor_type),
            name=self.stored.name,
            tensor_key_mapping=self.tensors.places,
            parsed_parameters={"config": self.tensors.config.to_dict(), "tensors": apart},
        )
        if made.name is None:
            return apart[self.name]
        numbers = made.weights if made.weights.flags.writeable else np.copy(made.weights)  # a page of the file
        return torch.from_numpy(numbers)
