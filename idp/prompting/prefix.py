"""Prompts as key/value prefixes, and the attention inputs of a batch in which every row has its own.

A prompt is a causal prefix: its keys and values at every layer do not depend on what follows, so they are computed
once per (bank, model). Every prompt keeps the positions 0..n-1 that it was trained at, and the input follows at n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from idp.beginning import Beginning
from idp.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

    from idp.prompting.bank import PromptBank


@dataclass
class Prefixes:
    """Keys and values of m prompts, padded on the right to the longest.

    `keys[layer]` and `values[layer]` are [m, kv_heads, longest, head_dim]; `lengths` is [m], the BOS of `beginning`
    that stands ahead of each prompt counted. `beginning` also says what every text behind them begins with.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    lengths: torch.Tensor
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

        def stacked(which: str, layer: int) -> torch.Tensor:
            tensors = [getattr(part, which)[layer] for part in parts]
            return torch.cat([pad_tokens(tensor, longest) for tensor in tensors])

        layers = range(len(parts[0].keys))
        return cls(
            [stacked("keys", layer) for layer in layers],
            [stacked("values", layer) for layer in layers],
            torch.cat([part.lengths for part in parts]),
            parts[0].beginning,
        )

    def cache(self, choice: torch.Tensor) -> DynamicCache:
        """A fresh cache that holds prompt `choice[row]` in each row; `choice` is [rows]."""
        longest = int(self.lengths[choice].max())
        layers = []
        for keys, values in zip(self.keys, self.values, strict=True):
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
    model: PreTrainedModel, prompt: torch.Tensor, ahead: Sequence[int] = ()
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every layer's keys and values of one prompt, [1, kv_heads, tokens, head_dim]; gradients flow to the prompt.

    Args:
        model: the causal language model.
        prompt: [tokens, hidden_size] in the space of the input embeddings.
        ahead: token ids before it, whose keys and values come first.
    """
    import torch

    weight = model.get_input_embeddings().weight
    if ahead:
        prompt = prompt.to(weight.device)
        prompt = torch.cat([embedded(model, ahead).to(prompt.dtype), prompt])
    cache = cache_of([])
    causal = torch.ones(len(prompt), len(prompt), dtype=torch.bool, device=weight.device).tril()
    positions = torch.arange(len(prompt), device=weight.device)[None]
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


def kv_shape(config: PretrainedConfig) -> tuple[int, int]:
    """Key/value heads of a layer and the width of one."""
    config = config.get_text_config()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return getattr(config, "num_key_value_heads", None) or heads, head_dim


def prefix_width(config: PretrainedConfig) -> int:
    """Numbers that a trained prefix takes per token: 2 * layers * kv_heads * head_dim."""
    heads, head_dim = kv_shape(config)
    return 2 * config.get_text_config().num_hidden_layers * heads * head_dim


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
    model: PreTrainedModel, kind: str, prompt: torch.Tensor, ahead: Sequence[int] = ()
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every layer's keys and values of one prompt of a bank of `kind`, [1, kv_heads, tokens, head_dim].

    Gradients flow to the prompt: training and inference go this one way. Token ids that stand `ahead` of the prompt
    come first.
    """
    import torch

    if kind != "prefix":
        return run_prompt(model, prompt, ahead)
    layers = unflatten(model, prompt)
    if not ahead:
        return layers
    with torch.no_grad():
        first = run_prompt(model, embedded(model, ahead))
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
    with torch.no_grad():
        beginning = beginning or bank.beginning or Beginning()
        runs = [states(model, bank.kind, prompt, beginning.ahead_of_prompt) for prompt in bank.prompts]
    prefixes = Prefixes.stack([_prefix_of(run, embeddings.device) for run in runs])
    prefixes.beginning = beginning
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
    cache, before = cache_of([]), 0
    if prefixes is not None:
        cache = prefixes.cache(torch.tensor([prompt], device=device))
        before = int(prefixes.lengths[prompt])
    positions = torch.arange(before + len(tokens), device=device)[None]
    visible = torch.ones(len(tokens), before + len(tokens), dtype=torch.bool, device=device).tril(before)
    with torch.no_grad():
        model.base_model(
            input_ids=torch.tensor([tokens], device=device),
            attention_mask=attention_mask(model, visible[None], positions[:, before:], positions),
            position_ids=positions[:, before:],
            past_key_values=cache,
            use_cache=True,
        )
    return _prefix_of([(layer.keys, layer.values) for layer in cache.layers], device)


def pad_tokens(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """Keys or values [rows, kv_heads, tokens, head_dim], padded with zeros to `length` tokens."""
    from torch.nn.functional import pad

    return pad(tensor, (0, 0, 0, length - tensor.shape[2]))


def _prefix_of(layers: list[tuple[torch.Tensor, torch.Tensor]], device: torch.device) -> Prefixes:
    import torch

    keys, values = zip(*layers, strict=True)
    return Prefixes(list(keys), list(values), torch.tensor([keys[0].shape[2]], device=device))


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
    if not has_sliding_window(model):
        return _additive(model, visible)
    config = model.config.get_text_config()
    window, kinds = config.sliding_window, set(getattr(config, "layer_types", None) or ())
    near = key_positions[:, None, :] > query_positions[:, :, None] - window
    if "full_attention" in kinds:
        return {"full_attention": _additive(model, visible), "sliding_attention": _additive(model, visible & near)}
    return _additive(model, visible & near)


def has_sliding_window(model: PreTrainedModel) -> bool:
    """Whether any layer sees only the nearest tokens."""
    config = model.config.get_text_config()
    if getattr(config, "sliding_window", None) is None or getattr(config, "use_sliding_window", True) is False:
        return False
    return set(getattr(config, "layer_types", None) or ()) != {"full_attention"}


def _additive(model: PreTrainedModel, visible: torch.Tensor) -> torch.Tensor:
    import torch

    mask = torch.zeros(visible.shape, dtype=model.dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(model.dtype).min)[:, None]
