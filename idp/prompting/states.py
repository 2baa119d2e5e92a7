"""The keys and values of one prompt at every layer, and the form in which PEFT stores those of a trained prefix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from idp.prompting.caches import cache_of
from idp.prompting.frequencies import frequencies
from idp.prompting.masks import attention_mask
from idp.prompting.shapes import kv_shape

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def run_prompt(
    model: PreTrainedModel, prompt: torch.Tensor, ahead: Sequence[int] = (), long: bool | None = None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every layer's keys and values of one prompt, [1, kv_heads, tokens, head_dim]; gradients flow to the prompt.

    Args:
        model: the causal language model.
        prompt: [tokens, hidden_size] in the space of the input embeddings.
        ahead: token ids before it, whose keys and values come first.
        long: whether the input with its prompt is a long one, as `frequencies` takes it.
    """
    import torch

    weight = model.get_input_embeddings().weight
    if not len(prompt) and not ahead:  # of no tokens: no keys, shaped as those of any other
        return [(keys[:, :, :0], values[:, :, :0]) for keys, values in run_prompt(model, weight[:1], (), long)]
    if ahead:
        prompt = prompt.to(weight.device)
        prompt = torch.cat([embedded(model, ahead).to(prompt.dtype), prompt])
    cache = cache_of([])
    causal = torch.ones(len(prompt), len(prompt), dtype=torch.bool, device=weight.device).tril()
    positions = torch.arange(len(prompt), device=weight.device)[None]
    with frequencies(model, long):
        model.base_model(
            inputs_embeds=prompt.to(weight.device, weight.dtype)[None],
            attention_mask=attention_mask(model, causal[None], positions, positions),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
    return [(layer.keys, layer.values) for layer in cache.layers]


def embedded(model: PreTrainedModel, tokens: Sequence[int]) -> torch.Tensor:
    """Embeddings of tokens as the model's layers get them, [tokens, hidden_size]."""
    import torch

    embeddings = model.get_input_embeddings()
    with torch.no_grad():
        return embeddings(torch.tensor(list(tokens), device=embeddings.weight.device))


def flatten(layers: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Keys and values of one prefix as PEFT's prefix tuning stores them.

    Args:
        layers: per layer keys and values, each [1, kv_heads, tokens, head_dim].

    Returns:
        [tokens, layers * 2 * kv_heads * head_dim]: for each token layer by layer its keys, then its values.
    """
    import torch

    stacked = torch.stack([tensor[0] for pair in layers for tensor in pair])  # [2 * layers, kv_heads, tokens, head_dim]
    return stacked.permute(2, 0, 1, 3).flatten(1)


def unflatten(model: PreTrainedModel, prefix: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every layer's keys and values of a stored prefix, in the model's dtype; the inverse of `flatten`.

    Gradients flow to the prefix. Keys are those that the cache holds: rotated, where positions are rotary.

    Args:
        model: the causal language model.
        prefix: [tokens, layers * 2 * kv_heads * head_dim].
    """
    weight = model.get_input_embeddings().weight
    heads, head_dim = kv_shape(model.config)
    layers_there = model.config.get_text_config().num_hidden_layers
    whole = prefix.to(weight.device, weight.dtype).view(len(prefix), layers_there, 2, heads, head_dim)
    whole = whole.permute(1, 2, 3, 0, 4)
    # A model spread over devices has its layers' prefixes beside them.
    modules = [module for module in model.modules() if getattr(module, "layer_idx", None) is not None]
    places = {module.layer_idx: parameter.device for module in modules for parameter in module.parameters()}
    layers = [pair.to(places.get(number, pair.device)) for number, pair in enumerate(whole)]
    return [(keys[None], values[None]) for keys, values in layers]


def states(
    model: PreTrainedModel, kind: str, prompt: torch.Tensor, ahead: Sequence[int] = (), long: bool | None = None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every layer's keys and values of one prompt of a bank of `kind`, [1, kv_heads, tokens, head_dim].

    Gradients flow to the prompt: training and inference go this one way. Token ids that stand `ahead` of the prompt
    come first; `long` is as for `run_prompt`.
    """
    import torch

    if kind != "prefix":
        return run_prompt(model, prompt, ahead, long)
    layers = unflatten(model, prompt)
    if not ahead:
        return layers
    with torch.no_grad():
        first = run_prompt(model, embedded(model, ahead), (), long)
    return [
        (torch.cat([keys, own_keys], dim=2), torch.cat([values, own_values], dim=2))
        for (keys, values), (own_keys, own_values) in zip(first, layers, strict=True)
    ]
