"""How far each compressed layer's outputs are from the dense one's, on the dense model's own inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn


TOKENS = 2048


class Tensors(Protocol):
    """Tensors by their names, wherever they lie."""

    def __getitem__(self, name: str) -> torch.Tensor: ...


def reconstruction_errors(
    model: nn.Module,
    layers: dict[str, nn.Linear],
    compressed: Tensors,
    inputs: torch.Tensor,
    scales: dict[str, torch.Tensor] | None = None,
) -> dict[str, float]:
    """`||X (W - W')^T||^2 / ||X W^T||^2` of each layer: its dense inputs X, its dense and compressed weights W, W'.

    Args:
        model: the dense model.
        layers: its compressed layers.
        compressed: the compressed weights.
        inputs: calibration blocks [samples, tokens]; the first `TOKENS` tokens are used, in one forward pass.
        scales: where a method multiplied a layer's columns by `<layer>.input_scale` or divided its rows by
            `<layer>.output_scale` and undid it elsewhere (AWQ), those: they are undone before the comparison.

    Returns:
        the error by the layer's name; a layer that the inputs do not reach has none.

    Raises:
        UserError: a layer's inputs or outputs are not finite.
    """
    import torch

    from idp.compress.guard import refuse_not_finite

    scales, errors = scales or {}, {}

    def hook(name: str):
        def compare(module: nn.Linear, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            refuse_not_finite(arguments[0], f"the input of {name}", module.weight.dtype)
            refuse_not_finite(output, f"the output of {name}", module.weight.dtype)
            rows, weight = arguments[0].flatten(0, -2).float(), module.weight.float()
            other = compressed[f"{name}.weight"].to(weight)
            if f"{name}.output_scale" in scales:
                other *= scales[f"{name}.output_scale"].to(weight)[:, None]
            if f"{name}.input_scale" in scales:
                other /= scales[f"{name}.input_scale"].to(weight)
            size = (rows @ weight.T).square().sum()
            errors[name] = float((rows @ (weight - other).T).square().sum() / size.clamp_min(1e-30))

        return compare

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        with torch.inference_mode():
            few = inputs[: max(1, TOKENS // inputs.shape[1])].to(model.get_input_embeddings().weight.device)
            model.base_model(input_ids=few, use_cache=False)  # without the head: nobody looks at its logits
    finally:
        for handle in handles:
            handle.remove()
    return errors
