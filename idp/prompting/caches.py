"""Caches of keys and values: made of tensors without copying, and what a model's attention makes of what is in one."""

from __future__ import annotations

import contextvars
import functools
import weakref
from typing import TYPE_CHECKING, Any

from idp.prompting.frequencies import frequencies

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache, PreTrainedModel

LOOKED_INTO = "idp_looked_into"
Layers = list[tuple["torch.Tensor", "torch.Tensor"]]  # keys and values of each, [rows, kv_heads, tokens, head_dim]


def cache_of(layers: list[tuple[torch.Tensor, torch.Tensor]], experts: torch.Tensor | None = None) -> Any:
    """A cache of the given keys and values, [rows, kv_heads, tokens, head_dim] per layer, without copying them.

    All layers are full ones, also in models with sliding windows: what a layer may see is the mask's business.

    Args:
        layers: keys and values of each.
        experts: [rows, experts], what each row goes by of low-rank experts in the layers (`idp.prompting.experts`),
            which every pass with this cache follows, as its `experts`; None for none.
    """
    from transformers.cache_utils import DynamicLayer

    cache = _cache_class()()
    cache.experts = experts
    for keys, values in layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


@functools.cache
def _cache_class() -> type:
    from transformers import DynamicCache

    class Followed(DynamicCache):
        experts: torch.Tensor | None = None

        def batch_select_indices(self, indices: torch.Tensor) -> None:
            super().batch_select_indices(indices)
            if self.experts is not None:
                self.experts = self.experts[indices.to(self.experts.device)]

    return Followed


def empty_cache(model: PreTrainedModel) -> DynamicCache:
    """A cache of nothing whose layers are all full ones."""
    from transformers.cache_utils import DynamicLayer

    cache = cache_of([])
    cache.layers.extend(DynamicLayer() for _ in range(model.config.get_text_config().num_hidden_layers))
    return cache


def caches_what_it_attends_to(model: PreTrainedModel, layers: Layers) -> bool:
    """Whether a model's attention is given the keys and values of its cache as they are; tried out once for a model."""
    if model not in _caches_plainly:
        found = attended(model, layers, None)
        _caches_plainly[model] = all(
            mine.shape == given.shape and bool((mine == given).all())
            for pair, both in zip(layers, found, strict=True)
            for mine, given in zip(pair, both, strict=True)
        )
    return _caches_plainly[model]


_caches_plainly: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()


def attended(model: PreTrainedModel, layers: Layers, long: bool | None) -> Layers:
    """The keys and values that each layer's attention is given for a prefix in its cache, likewise shaped.

    Latent attention keeps what they are made of, others repeat heads before they attend. One token is run behind the
    prefix, and its attention looked into.

    Args:
        model: the model.
        layers: what its cache holds of the prefix, [1, kv_heads, tokens, head_dim] for each layer.
        long: as for `run_prompt`.
    """
    import torch
    from transformers import AttentionInterface

    length, device = layers[0][0].shape[2], model.get_input_embeddings().weight.device
    config = model.config.get_text_config()
    before = config._attn_implementation
    given: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    position = torch.tensor([[length]], device=device)
    mask = torch.zeros(1, 1, 1, length + 1, device=device)
    kinds = set(getattr(config, "layer_types", None) or ())
    AttentionInterface.register(LOOKED_INTO, _look)
    token = _looked_into.set((given, length))
    config._attn_implementation = LOOKED_INTO
    try:
        with frequencies(model, long):
            model.base_model(
                input_ids=torch.zeros(1, 1, dtype=torch.long, device=device),
                attention_mask=dict.fromkeys(kinds, mask) if len(kinds) > 1 else mask,
                position_ids=position,
                past_key_values=cache_of(list(layers)),
                use_cache=True,
            )
    finally:
        config._attn_implementation = before
        _looked_into.reset(token)
    return [given[layer] for layer in range(len(layers))]


# What `_look` writes down, and of how many tokens. transformers' registry keeps the function for ever, so that holds
# nothing itself.
_looked_into: contextvars.ContextVar[tuple[dict[int, Any], int]] = contextvars.ContextVar(LOOKED_INTO)


def _look(module: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
    given, length = _looked_into.get()
    given[module.layer_idx] = key[:, :, :length], value[:, :, :length]
    return query.new_zeros(1, 1, query.shape[1], value.shape[-1]), None
