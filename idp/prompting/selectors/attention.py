"""IDP's selector: the prompt that the input's tokens attend to most (Hoang et al., 2310.00867).

    s_i = mean over heads h, input tokens x, prompt tokens p of A_h[x, p in prompt i],   i* = argmax_i s_i

The paper leaves open at which layer, before or after the softmax, over which heads. Here each is an option; the
default is layer 0, after the softmax, all heads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from idp.prompting.prefix import attention_mask
from idp.prompting.selectors.base import Selector

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PROBE = "idp_probe"


class Attention(Selector):
    """Attention to each prompt, as one pass over all prompts side by side would show it.

    The prompts do not see one another. The query that looks at prompt i stands where it would if prompt i were alone
    (at n_i + t for prompts of n_i tokens), so every prompt is judged at the distance that it was trained for. All
    prompts and the input's own earlier tokens share one softmax.

    Args:
        layer: the decoder layer that is read. Layer 0 costs one embedding, one projection and one product of queries
            with keys; deeper ones run the layers below, once per prompt.
        softmax: `post` reads attention weights, `pre` the scaled products before the softmax.
        reduce: over a prompt's tokens, `mean` or `sum`; a post-softmax sum favours long prompts.
        heads: the heads that are read; None reads all.
    """

    def __init__(self, layer: int = 0, softmax: str = "post", reduce: str = "mean", heads: list[int] | None = None):
        self.layer, self.softmax, self.reduce, self.heads = layer, softmax, reduce, heads

    def scores(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        import torch

        real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]  # [contexts, tokens]
        products, own = self._products(tokens, real)
        if self.softmax == "post":
            parts = [product.logsumexp(-1) for product in products]
            total = torch.stack([*parts, own], dim=-1).logsumexp(-1)
            products = [(product - total[..., None]).exp() for product in products]
        means = []
        for product in products:  # [contexts, heads, tokens, prompt tokens]
            value = product.sum(-1) if self.reduce == "sum" else product.mean(-1)
            if self.heads is not None:
                value = value[:, self.heads]
            value = value.mean(1).masked_fill(~real, 0.0)
            means.append(value.sum(1) / lengths)
        return torch.stack(means, dim=1)

    def _products(self, tokens: torch.Tensor, real: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Scaled query-key products with each prompt, and the log-sum-exp of those with the input's own tokens.

        Returns:
            a list of m tensors [contexts, heads, tokens, prompt tokens], and [contexts, heads, tokens].
        """
        prompts: list[torch.Tensor | None] = [None] * len(self.prefixes.lengths)
        own = None
        lengths = self.prefixes.lengths.tolist()
        # At layer 0 a query depends on its position alone, not on what the prompt says: one pass per prompt length.
        groups = (
            [[i for i, n in enumerate(lengths) if n == length] for length in sorted(set(lengths))]
            if self.layer == 0
            else [[i] for i in sorted(range(len(lengths)), key=lengths.__getitem__)]
        )
        for group in groups:
            query, key, scale = self._probe(tokens, real, group[0])
            for i in group:
                prompts[i] = _product(query, self.prefixes.keys[self.layer][i : i + 1, :, : lengths[i]], scale)
            if group is groups[-1]:  # the input's own attention, with the input behind the longest prompt
                own = _product(query, key, scale).masked_fill_(~_causal(real)[:, None], float("-inf")).logsumexp(-1)
        return prompts, own

    def _probe(self, tokens: torch.Tensor, real: torch.Tensor, prompt: int) -> tuple[Any, Any, float]:
        """The layer's queries and own keys, as its attention gets them, with the input behind prompt `prompt`."""
        import torch

        rows, width = tokens.shape
        offset = int(self.prefixes.lengths[prompt])
        positions = offset + torch.arange(width, device=tokens.device).expand(rows, -1)
        visible, cache, key_positions = _causal(real), None, positions
        if self.layer > 0:
            choice = torch.full((rows,), prompt, device=tokens.device)
            cache = self.prefixes.cache(choice)
            visible = torch.cat([visible.new_ones(rows, width, offset), visible], dim=2)
            before = torch.arange(offset, device=tokens.device).expand(rows, -1)
            key_positions = torch.cat([before, positions], dim=1)
        with _probing(self.model, self.layer) as caught:
            self.model.base_model(
                input_ids=tokens,
                attention_mask=attention_mask(self.model, visible, positions, key_positions),
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        query, key, scale = caught[0]
        here = tokens.device  # a deeper layer may be on another device
        return query.to(here), key[:, :, -width:].to(here), scale


class _Caught(Exception):
    """Ends a forward pass once the layer that was asked for has been seen."""


@contextlib.contextmanager
def _probing(model: PreTrainedModel, layer: int) -> Iterator[list[tuple[Any, Any, float]]]:
    """Runs a forward pass up to the attention of `layer`, and yields its query, key and scale.

    It goes through transformers' own registry of attention functions, so that queries and keys come as the model
    makes them: projected, normalised, rotated, whatever the architecture does.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    caught: list[tuple[Any, Any, float]] = []

    def probe(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any = None, **rest: Any) -> Any:
        if module.layer_idx == layer:
            caught.append((query, key, query.shape[-1] ** -0.5 if scaling is None else scaling))
            raise _Caught
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **rest)

    config = model.config.get_text_config()
    before = config._attn_implementation
    AttentionInterface.register(PROBE, probe)
    config._attn_implementation = PROBE
    try:
        with contextlib.suppress(_Caught):
            yield caught
    finally:
        config._attn_implementation = before


def _product(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    """Scaled products of queries [rows, heads, tokens, dim] with keys [rows or 1, kv_heads, keys, dim], in float32.

    They are taken in the model's own precision, as its attention takes them. Query heads share the key heads in order.
    """
    rows, heads, tokens, dim = query.shape
    kv_heads, key = key.shape[1], key.to(query.device)
    if key.shape[0] == 1:  # one product for all rows
        grouped = query.transpose(0, 1).reshape(kv_heads, -1, dim)
        found = (grouped @ key[0].transpose(1, 2)).view(heads, rows, tokens, -1).transpose(0, 1)
    else:
        grouped = query.reshape(rows, kv_heads, -1, dim)
        found = (grouped @ key.transpose(-1, -2)).view(rows, heads, tokens, -1)
    return found.float().mul_(scale)


def _causal(real: torch.Tensor) -> torch.Tensor:
    """[rows, tokens, tokens]: a token sees itself and the real ones before it."""
    import torch

    width = real.shape[1]
    itself = torch.eye(width, dtype=torch.bool, device=real.device)
    return (real.new_ones(width, width).tril() & real[:, None, :]) | itself
