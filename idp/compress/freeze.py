"""From llmcompressor's fake-quantised layers to plain dense weights with the same values."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from idp.store import Product

GRIDS = "grids.safetensors"  # in a product's folder


def freeze(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Makes each quantised layer a plain one whose weight is what its forward pass used.

    A quantised layer rounds its weight anew at every call (1.25-1.5 times slower), and only some methods leave grid
    values in `weight`. Here the rounding is done once and the quantisation machinery is taken off.

    Returns:
        each quantised layer's scale and zero point, `<layer>.scale` and `<layer>.zero_point`, for packing later.
    """
    import torch
    from compressed_tensors.quantization.lifecycle.forward import forward_quantize

    grids: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, module in model.named_modules():
            scheme = getattr(module, "quantization_scheme", None)
            if scheme is None or scheme.weights is None:
                continue
            rounded = forward_quantize(module, module.weight, "weight", scheme.weights)
            # In place: an expert's weight is a part of a larger tensor. A zero loses its sign, which no code holds.
            module.weight.data.copy_(rounded + 0.0)
            grids[f"{name}.scale"] = module.weight_scale.detach().clone()
            grids[f"{name}.zero_point"] = module.weight_zero_point.detach().clone()
            _strip(module)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return grids


def stored_grids(compressed: Product) -> dict[str, torch.Tensor] | None:
    """What `freeze` gave of a product of the compress stage; None where its weights lie on no grid that is known."""
    from safetensors.torch import load_file

    file = compressed.path / GRIDS
    return load_file(file) if file.is_file() else None


def _strip(module: torch.nn.Module) -> None:
    for attribute in ("quantization_scheme", "quantization_status", "quantization_enabled"):
        if hasattr(module, attribute):
            delattr(module, attribute)
    for name in [name for name, _ in module.named_parameters(recurse=False)]:
        if name.startswith(("weight_", "input_", "output_")):
            delattr(module, name)
    module.__dict__.pop("forward", None)  # back to the class's own forward
