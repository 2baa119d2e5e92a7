"""Attention to a prefix outside the softmax of the content, behind a gate that starts at zero (LLaMA-Adapter).

Of head h, with k(h) its key/value head, q_h its query before any rotation, and K, V the prefix's:

    output_h = attention_h(content) + tanh(g_h) * softmax(scaling * q_h K_k(h)^T) V_k(h)

It hangs on two layers that each of the model's attention modules has: what its query projection gives is read as it
passes, and what its output projection takes is added to. So it is the same in one sequence, in a batch, in packed rows
and beside a cache, and no input and no position changes what it attends to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from idp.errors import UserError
from idp.prompting.shapes import kv_shape

QUERY, KEY, VALUE, OUTPUTS = "q_proj", "k_proj", "v_proj", ("o_proj", "out_proj", "dense")
NAME = "gated_prefix"  # what the module is called within an attention module


class GatedAttention(nn.Module):
    """A prefix's share in the output of one attention module.

    Args:
        attention: the model's module, which is no part of this one.
        keys: [tokens, kv_heads, head_dim], not rotated.
        values: likewise.
        gate: [heads].
    """

    def __init__(self, attention: nn.Module, keys: torch.Tensor, values: torch.Tensor, gate: torch.Tensor):
        super().__init__()
        self.keys, self.values, self.gate = (nn.Parameter(each.clone()) for each in (keys, values, gate))
        self.scaling = getattr(attention, "scaling", None) or keys.shape[-1] ** -0.5
        self._queries = lambda projected: _normalised(projected, attention, "q_norm", keys.shape[-1])
        self._projected: torch.Tensor | None = None

    def see(self, _: nn.Module, __: Any, projected: torch.Tensor) -> None:
        """A forward hook of the query projection."""
        self._projected = projected

    def add(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """A forward pre-hook of the output projection."""
        projected, self._projected = self._projected, None
        assert projected is not None  # queries come before what is attended with them
        content = inputs[0]
        return (content + self(projected).reshape(content.shape).to(content.dtype), *inputs[1:])

    def forward(self, projected: torch.Tensor) -> torch.Tensor:
        """What is added to the heads' outputs, [..., heads, head_dim], of projected queries [..., heads * head_dim]."""
        queries = self._queries(projected)
        dtype, kv_heads = queries.dtype, self.keys.shape[1]
        grouped = queries.unflatten(-2, (kv_heads, -1))  # [..., kv_heads, heads that share one, head_dim]
        keys, values = self.keys.to(dtype), self.values.to(dtype)
        scores = torch.einsum("...krd,nkd->...krn", grouped, keys) * self.scaling
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(dtype)
        gate = self.gate.tanh().to(dtype).view(kv_heads, -1, 1)
        return (gate * torch.einsum("...krn,nkd->...krd", weights, values)).flatten(-3, -2)


def attentions(model: PreTrainedModel) -> list[nn.Module]:
    """The model's attention modules, layer by layer.

    Raises:
        UserError: they have no query, key, value and output projections of their own, by the names known here.
    """
    found = [module for module in model.modules() if _is_attention(module)]
    layers, (heads, head_dim) = model.config.get_text_config().num_hidden_layers, kv_shape(model.config)
    if len(found) != layers:
        raise UserError(
            f"recovery=gated_prefix: of {type(model).__name__}'s {layers} layers {len(found)} have {QUERY}, {KEY},"
            f" {VALUE} and {' or '.join(OUTPUTS)} to hang it on; use recovery=prefix"
        )
    wide = {getattr(getattr(module, KEY), "out_features", heads * head_dim) for module in found}
    if wide != {heads * head_dim}:
        raise UserError(
            f"recovery=gated_prefix: {type(model).__name__} has keys of {sorted(wide)} numbers, its config says"
            f" {heads * head_dim} in every layer; use recovery=prefix"
        )
    return found


def query_heads(model: PreTrainedModel) -> int:
    """Query heads of a layer."""
    return model.config.get_text_config().num_attention_heads


def put_on(model: PreTrainedModel, keys: torch.Tensor, values: torch.Tensor, gates: torch.Tensor) -> Attachment:
    """Puts a prefix on every layer, in `keys`' dtype.

    Args:
        model: the model.
        keys: [layers, tokens, kv_heads, head_dim]; `values` likewise.
        values: see `keys`.
        gates: [layers, heads].
    """
    attachment = Attachment()
    for attention, *tensors in zip(attentions(model), keys, values, gates, strict=True):
        device = next(attention.parameters()).device
        gated = GatedAttention(attention, *(each.to(device) for each in tensors))
        attention.add_module(NAME, gated)
        hooks = [
            getattr(attention, QUERY).register_forward_hook(gated.see),
            output_of(attention).register_forward_pre_hook(gated.add),
        ]
        attachment.places.append((attention, gated, hooks))
    return attachment


class Attachment:
    """Where a prefix hangs on a model."""

    def __init__(self) -> None:
        self.places: list[tuple[nn.Module, GatedAttention, list[Any]]] = []

    def stacked(self) -> dict[str, torch.Tensor]:
        """`keys`, `values` and `gates` as `put_on` takes them, float32 on the CPU."""
        parts = {"keys": "keys", "values": "values", "gates": "gate"}
        return {
            name: torch.stack([getattr(gated, part).detach().float().cpu() for _, gated, _ in self.places])
            for name, part in parts.items()
        }

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {
            f"{layer}.{name}": parameter
            for layer, (_, gated, _) in enumerate(self.places)
            for name, parameter in gated.named_parameters()
        }

    def take_off(self) -> None:
        """Leaves the model as it was."""
        for attention, _, hooks in self.places:
            del attention._modules[NAME]
            for hook in hooks:
                hook.remove()


def unrotated(model: PreTrainedModel, run: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values as the projections give them while `run()` runs one sequence through the model.

    Returns:
        each [layers, tokens, kv_heads, head_dim], float32 on the CPU.
    """
    head_dim = kv_shape(model.config)[1]
    seen: dict[str, list[torch.Tensor]] = {KEY: [], VALUE: []}
    hooks = []

    def look(attention: nn.Module, name: str, norm: str) -> Any:
        def hook(_: nn.Module, __: Any, projected: torch.Tensor) -> None:
            seen[name].append(_normalised(projected[0], attention, norm, head_dim).detach().float().cpu())

        return hook

    for attention in attentions(model):
        for name, norm in ((KEY, "k_norm"), (VALUE, "v_norm")):
            hooks.append(getattr(attention, name).register_forward_hook(look(attention, name, norm)))
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(seen[KEY]), torch.stack(seen[VALUE])


def output_of(attention: nn.Module) -> nn.Module:
    """An attention module's output projection."""
    return next(getattr(attention, name) for name in OUTPUTS if hasattr(attention, name))


def _is_attention(module: nn.Module) -> bool:
    return all(hasattr(module, name) for name in (QUERY, KEY, VALUE)) and any(hasattr(module, o) for o in OUTPUTS)


def _normalised(projected: torch.Tensor, attention: nn.Module, norm: str, head_dim: int) -> torch.Tensor:
    """Heads [..., heads, head_dim] of what a projection gives, normalised where the model does so: each, or all."""
    module = getattr(attention, norm, None)
    weight = getattr(module, "weight", None)
    if module is None or weight is None:
        return projected.unflatten(-1, (-1, head_dim))
    if weight.shape[-1] == projected.shape[-1]:
        return module(projected).unflatten(-1, (-1, head_dim))
    return module(projected.unflatten(-1, (-1, head_dim)))
