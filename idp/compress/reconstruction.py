"""How far each compressed layer's outputs are from the dense one's, on the dense model's own inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from idp.compress.activations import Observer, watching

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

    scales = scales or {}
    compared = {name: LayerComparison(name, compressed, scales) for name in layers}
    with torch.inference_mode(), watching(model, compared):
        few = inputs[: max(1, TOKENS // inputs.shape[1])].to(model.get_input_embeddings().weight.device)
        model.base_model(input_ids=few, use_cache=False)  # without the head: nobody looks at its logits
    return {name: each.error for name, each in compared.items() if each.error is not None}


class LayerComparison(Observer):
    """The error of one layer on one batch of its dense inputs."""

    def __init__(self, name: str, compressed: Tensors, scales: dict[str, torch.Tensor]):
        self.name, self.compressed, self.scales = name, compressed, scales
        self.error: float | None = None

    def see(self, layer: nn.Linear, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        from idp.compress.guard import refuse_not_finite

        refuse_not_finite(outputs, f"the output of {self.name}", layer.weight.dtype)
        rows, weight = inputs.float(), layer.weight.float()
        other = self.compressed[f"{self.name}.weight"].to(weight)
        if f"{self.name}.output_scale" in self.scales:
            other *= self.scales[f"{self.name}.output_scale"].to(weight)[:, None]
        if f"{self.name}.input_scale" in self.scales:
            other /= self.scales[f"{self.name}.input_scale"].to(weight)
        size = (rows @ weight.T).square().sum()
        self.error = float((rows @ (weight - other).T).square().sum() / size.clamp_min(1e-30))
