"""Prompts as key/value prefixes, and the attention inputs of a batch in which every row has its own.

A prompt is a causal prefix: its keys and values at every layer do not depend on what follows, so they are computed
once per (bank, model). Every prompt keeps the positions 0..n-1 that it was trained at, and the input follows at n.
"""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from idp.beginning import Beginning, begun
from idp.errors import UserError
from idp.prompting import finite
from idp.prompting.frequencies import frequencies, switch_of
from idp.prompting.shapes import kv_shape, prefix_width

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache, PreTrainedModel

    from idp.prompting.bank import PromptBank


LOOKED_INTO = "idp_looked_into"
Layers = list[tuple["torch.Tensor", "torch.Tensor"]]


@dataclass
class Prefixes:
    """Keys and values of m prompts, padded on the right to the longest.

    `keys[layer]` and `values[layer]` are what the layer's attention is given, [m, kv_heads, longest, head_dim];
    `lengths` is [m], the BOS of `beginning` that stands ahead of each prompt counted. `cached` holds the pairs that its
    cache holds, likewise padded, where those are something else: latent attention keeps what keys and values are made
    of. `long` holds the same prompts as they are in long inputs, where a model's rotary frequencies change at a length.
    `beginning` also says what every text behind them begins with.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    lengths: torch.Tensor
    cached: Layers | None = None
    long: Prefixes | None = None
    beginning: Beginning = field(default_factory=Beginning)

    @property
    def ahead(self) -> int:
        """Tokens of each prefix that are not its prompt's own: the BOS before it."""
        return len(self.beginning.ahead_of_prompt)

    @classmethod
    def stack(cls, parts: list[Prefixes]) -> Prefixes:
        """Several sets of prefixes as one, in order."""
        import torch

        longest = max(part.keys[0].shape[2] for part in parts)

        def stacked(tensors: list[torch.Tensor]) -> torch.Tensor:
            return torch.cat([pad_tokens(tensor, longest) for tensor in tensors])

        layers = range(len(parts[0].keys))
        cached = None
        if parts[0].cached is not None:
            cached = [
                (stacked([part.cached[layer][0] for part in parts]), stacked([part.cached[layer][1] for part in parts]))
                for layer in layers
            ]
        return cls(
            [stacked([part.keys[layer] for part in parts]) for layer in layers],
            [stacked([part.values[layer] for part in parts]) for layer in layers],
            torch.cat([part.lengths for part in parts]),
            cached,
            cls.stack([part.long for part in parts]) if parts[0].long is not None else None,
            parts[0].beginning,
        )

    @functools.cached_property
    def whole(self) -> Prefixes:
        """The prompts, and behind them those of `long`."""
        if self.long is None:
            return self
        return Prefixes.stack([dataclasses.replace(self, long=None), self.long])

    def row(self, prompt: int, long: bool) -> int:
        """Where a prompt stands in `whole`, as it is in short inputs or in long ones."""
        return prompt + len(self.lengths) * (long and self.long is not None)

    def cache(self, choice: torch.Tensor, long: torch.Tensor | None = None) -> DynamicCache:
        """A fresh cache that holds prompt `choice[row]` in each row; `choice` is [rows].

        Args:
            choice: the prompts.
            long: [rows], whether the prompt is followed by a long input, where that makes a difference.
        """
        longest = int(self.lengths[choice].max())
        source = self
        if long is not None and self.long is not None:
            source, choice = self.whole, choice + len(self.lengths) * long.to(choice.device)
        layers = []
        for keys, values in source.cached or zip(source.keys, source.values, strict=True):
            rows = choice.to(keys.device)  # a model spread over devices has its layers' prefixes beside them
            layers.append((keys[rows, :, :longest], values[rows, :, :longest]))
        return cache_of(layers)

    def valid(self, choice: torch.Tensor) -> torch.Tensor:
        """Which prefix positions are a prompt's own: [rows, longest of the chosen], True where not padding."""
        import torch

        lengths = self.lengths[choice]
        return torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]


def cache_of(layers: list[tuple[torch.Tensor, torch.Tensor]]) -> DynamicCache:
    """A cache of the given keys and values, [rows, kv_heads, tokens, head_dim] per layer, without copying them.

    All layers are full ones, also in models with sliding windows: what a layer may see is the mask's business.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache()
    for keys, values in layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def empty_cache(model: PreTrainedModel) -> DynamicCache:
    """A cache of nothing whose layers are all full ones."""
    from transformers.cache_utils import DynamicLayer

    cache = cache_of([])
    cache.layers.extend(DynamicLayer() for _ in range(model.config.get_text_config().num_hidden_layers))
    return cache


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
    whole = prefix.to(weight.device, weight.dtype).view(len(prefix), -1, 2, heads, head_dim).permute(1, 2, 3, 0, 4)
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


def bind(model: PreTrainedModel, bank: PromptBank, beginning: Beginning | None = None) -> Prefixes:
    """The bank's prompts as prefixes of `model`, without gradients.

    Args:
        model: the causal language model.
        bank: the prompts.
        beginning: the BOS and its place; None: the bank's own, or none at all.

    Raises:
        UserError: the prompts are of another width than the model has: they belong to another one.
    """
    import torch

    embeddings = model.get_input_embeddings().weight
    wanted = prefix_width(model.config) if bank.kind == "prefix" else embeddings.shape[1]
    what = "keys and values of" if bank.kind == "prefix" else "hidden size"
    for name, prompt in zip(bank.names, bank.prompts, strict=True):
        if prompt.shape[1] != wanted:
            raise UserError(
                f"{bank.kind} {name} has {what} {prompt.shape[1]}, the model {wanted}: it belongs to another model"
            )
    beginning = beginning or bank.beginning or Beginning()
    ahead = beginning.ahead_of_prompt

    def bound(long: bool | None) -> Prefixes:
        runs = [states(model, bank.kind, prompt, ahead, long) for prompt in bank.prompts]
        for prompt, run in zip(bank.prompts, runs, strict=True):
            again = functools.partial(states, model, bank.kind, prompt, ahead, long)
            for keys, values in run:
                finite.check(keys, model, again, "a prompt's keys")
                finite.check(values, model, again, "a prompt's values")
        made = Prefixes.stack([_prefix_of(model, run, long) for run in runs])
        made.beginning = beginning
        return made

    with torch.no_grad():
        if switch_of(model.config) is None:
            return bound(None)
        prefixes = bound(False)
        prefixes.long = bound(True)
    return prefixes


def extend(model: PreTrainedModel, prefixes: Prefixes | None, prompt: int, tokens: list[int]) -> Prefixes:
    """Prompt `prompt` with text behind it, as one longer prefix: for text that many inputs begin with.

    Args:
        model: the model.
        prefixes: the bank's prefixes; None for text without a prompt.
        prompt: which of them.
        tokens: the text.
    """
    import torch

    device = model.get_input_embeddings().weight.device
    before = int(prefixes.lengths[prompt]) if prefixes is not None else 0
    positions = torch.arange(before + len(tokens), device=device)[None]
    visible = torch.ones(len(tokens), before + len(tokens), dtype=torch.bool, device=device).tril(before)

    def extended(long: bool | None) -> Prefixes:
        cache = cache_of([])
        if prefixes is not None:
            whose = prefixes.long if long else prefixes
            cache = whose.cache(torch.tensor([prompt], device=device))
        with frequencies(model, long):
            model.base_model(
                input_ids=torch.tensor([tokens], device=device),
                attention_mask=attention_mask(model, visible[None], positions[:, before:], positions),
                position_ids=positions[:, before:],
                past_key_values=cache,
                use_cache=True,
            )
        return _prefix_of(model, [(layer.keys, layer.values) for layer in cache.layers], long)

    with torch.no_grad():
        if switch_of(model.config) is None:
            return extended(None)
        longer = extended(False)
        longer.long = extended(True)
    return longer


def behind(
    model: PreTrainedModel,
    prompt: torch.Tensor,
    batch: torch.Tensor,
    kind: str = "prompt",
    beginning: Beginning = Beginning(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """What the model is called with for a batch, [rows, tokens], behind one prompt, [tokens, width].

    The prompt's keys and values are computed once for all rows; `kind` is as in `PromptBank`. The BOS of `beginning`
    stands before the prompt, or before each row, which `input_ids` then begin with.
    """
    import torch

    batch, ahead = begun(batch, beginning.ahead_of_text), beginning.ahead_of_prompt
    (rows, width), length, device = batch.shape, len(ahead) + len(prompt), batch.device
    switch = switch_of(model.config)
    made = states(model, kind, prompt, ahead, None if switch is None else length + width > switch)
    shared = [(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in made]
    positions = torch.arange(length + width, device=device)[None]
    visible = torch.ones(width, length + width, dtype=torch.bool, device=device).tril(length)
    return {
        "input_ids": batch,
        "attention_mask": attention_mask(model, visible[None], positions[:, length:], positions),
        "position_ids": positions[:, length:].expand(rows, -1),
        "past_key_values": cache_of(shared),
        "use_cache": True,
    }


def pad_tokens(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """Keys or values [rows, kv_heads, tokens, head_dim], padded with zeros to `length` tokens."""
    from torch.nn.functional import pad

    return pad(tensor, (0, 0, 0, length - tensor.shape[2]))


def _prefix_of(model: PreTrainedModel, layers: Layers, long: bool | None) -> Prefixes:
    """One prefix out of what the model's cache holds of it, [1, kv_heads, tokens, head_dim] for each layer."""
    import torch

    device = model.get_input_embeddings().weight.device
    lengths = torch.tensor([layers[0][0].shape[2]], device=device)
    seen = layers if caches_what_it_attends_to(model, layers) else attended(model, layers, long)
    keys, values = zip(*seen, strict=True)
    return Prefixes(list(keys), list(values), lengths, None if seen is layers else layers)


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
    before, given = config._attn_implementation, {}
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


def attention_mask(
    model: PreTrainedModel, visible: torch.Tensor, query_positions: torch.Tensor, key_positions: torch.Tensor
) -> Any:
    """The mask in the form that the model's layers take: additive, and per kind of layer where windows slide.

    Args:
        model: its config says which layers have a sliding window.
        visible: [rows, queries, keys], True where a query may see a key. Every query must see one key at least.
        query_positions: [rows or 1, queries].
        key_positions: [rows or 1, keys].

    Returns:
        [rows, 1, queries, keys], or a dict of such by kind of layer for models that mix kinds.
    """
    if not has_local_attention(model):
        return _additive(model, visible)
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if "chunked_attention" in kinds:
        size = config.attention_chunk_size
        same = key_positions[:, None, :] // size == query_positions[:, :, None] // size
        return {"full_attention": _additive(model, visible), "chunked_attention": _additive(model, visible & same)}
    near = key_positions[:, None, :] > query_positions[:, :, None] - config.sliding_window
    if "full_attention" in kinds:
        return {"full_attention": _additive(model, visible), "sliding_attention": _additive(model, visible & near)}
    return _additive(model, visible & near)


def has_local_attention(model: PreTrainedModel) -> bool:
    """Whether any layer sees only the nearest tokens, or those of one chunk."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if "chunked_attention" in kinds:
        return True
    if getattr(config, "sliding_window", None) is None or getattr(config, "use_sliding_window", True) is False:
        return False
    return kinds != {"full_attention"}


def _additive(model: PreTrainedModel, visible: torch.Tensor) -> torch.Tensor:
    import torch

    mask = torch.zeros(visible.shape, dtype=model.dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(model.dtype).min)[:, None]
