"""Prompts as key/value prefixes, and the attention inputs of a batch in which every row has its own.

A prompt is a causal prefix: its keys and values at every layer do not depend on what follows, so they are computed
once per (bank, model). Every prompt keeps the positions 0..n-1 that it was trained at, and the input follows at n.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from idp.beginning import Beginning, begun
from idp.config import check_mixable
from idp.errors import UserError
from idp.prompting import experts, finite
from idp.prompting.caches import Layers, attended, cache_of, caches_what_it_attends_to
from idp.prompting.following import following
from idp.prompting.frequencies import frequencies, switch_of
from idp.prompting.masks import attention_mask
from idp.prompting.shapes import prefix_width
from idp.prompting.states import states

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache, PreTrainedModel

    from idp.prompting.bank import PromptBank


@dataclass
class Prefixes:
    """Keys and values of m prompts, padded on the right to the longest.

    `keys[layer]` and `values[layer]` are what the layer's attention is given, [m, kv_heads, longest, head_dim];
    `lengths` is [m], the BOS of `beginning` that stands ahead of each prompt counted. `cached` holds the pairs that its
    cache holds, likewise padded, where those are something else: latent attention keeps what keys and values are made
    of. `long` holds the same prompts as they are in long inputs, where a model's rotary frequencies change at a length.
    `beginning` also says what every text behind them begins with. `experts` is [m, experts], how much of each low-rank
    expert in the model's layers whatever follows a prefix goes by; None where the layers have none.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    lengths: torch.Tensor
    cached: Layers | None = None
    long: Prefixes | None = None
    beginning: Beginning = field(default_factory=Beginning)
    experts: torch.Tensor | None = None

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
            each = [part.cached for part in parts if part.cached is not None]
            cached = [
                (stacked([part[layer][0] for part in each]), stacked([part[layer][1] for part in each]))
                for layer in layers
            ]
        return cls(
            [stacked([part.keys[layer] for part in parts]) for layer in layers],
            [stacked([part.values[layer] for part in parts]) for layer in layers],
            torch.cat([part.lengths for part in parts]),
            cached,
            cls.stack([part.long for part in parts if part.long is not None]) if parts[0].long is not None else None,
            parts[0].beginning,
            torch.cat([part.experts for part in parts if part.experts is not None])
            if parts[0].experts is not None
            else None,
        )

    @property
    def own_lengths(self) -> torch.Tensor:
        """Tokens of each prompt, without the BOS before it, [m]; 0 of the empty prompt."""
        return self.lengths - self.ahead

    def only(self, prompts: list[int]) -> Prefixes:
        """Some of the prompts, in that order."""
        chosen = self._changed(lambda tensor: tensor[prompts], self.lengths[prompts])
        return chosen._going_by(lambda experts: experts[prompts])

    def mixed(self, weights: torch.Tensor) -> Prefixes:
        """A prefix for each row of `weights` [rows, m]: the weighted mean of the prompts' keys and of their values.

        Prompts of one length stand at the same positions, where their keys are rotated alike: so the mean of keys is
        a key there. Where a weight is 1 and the others are 0, it is that prompt, bit for bit.

        Raises:
            UserError: as `check_mixable`.
        """
        self.check_mixable()
        mixed = self._changed(lambda tensor: weighted(tensor, weights), self.lengths[:1].expand(len(weights)))
        return mixed._going_by(lambda experts: weights.to(experts) @ experts)

    def check_mixable(self) -> None:
        """Refuses what no mean can be taken of.

        Raises:
            UserError: prompts of several lengths, or a model whose cache holds something else than keys and values.
        """
        check_mixable(self.own_lengths.tolist())
        if self.cached is not None:
            raise UserError(
                "recovery.selector.temperature: the model's cache holds something else than the keys and values that it"
                " attends to, whose mean is not theirs; use recovery.selector.temperature=null"
            )

    def emptied(self) -> Prefixes:
        """As many prefixes of no tokens at all."""
        return self._changed(lambda tensor: tensor[:, :, :0], self.lengths * 0)

    def _changed(self, change: Callable[[torch.Tensor], torch.Tensor], lengths: torch.Tensor) -> Prefixes:
        """The same with all keys and values changed, each [m, kv_heads, longest, head_dim]."""
        return dataclasses.replace(
            self,
            keys=[change(keys) for keys in self.keys],
            values=[change(values) for values in self.values],
            lengths=lengths,
            cached=[(change(one), change(other)) for one, other in self.cached] if self.cached is not None else None,
            long=self.long._changed(change, lengths) if self.long is not None else None,
        )

    def _going_by(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Prefixes:
        """The same with other experts, of those that there are, [m, experts]."""
        if self.experts is None:
            return self
        long = self.long._going_by(change) if self.long is not None else None
        return dataclasses.replace(self, experts=change(self.experts), long=long)

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
        return cache_of(layers, source.experts[choice] if source.experts is not None else None)

    def valid(self, choice: torch.Tensor) -> torch.Tensor:
        """Which prefix positions are a prompt's own: [rows, longest of the chosen], True where not padding."""
        import torch

        lengths = self.lengths[choice]
        return torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]


def bind(model: PreTrainedModel, bank: PromptBank, beginning: Beginning | None = None) -> Prefixes:
    """The bank's prompts as prefixes of `model`, without gradients.

    Args:
        model: the causal language model.
        bank: the prompts.
        beginning: the BOS and its place; None: the bank's own, or none at all.

    Raises:
        UserError: the prompts are of another width than the model has: they belong to another one; or its layers have
            experts, and not one for each prompt.
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
    mixtures = experts.one_each(model, len(bank))
    if mixtures is None and not any(bank.lengths):
        raise UserError(
            "recovery.empty_prompt: the bank holds the empty prompt alone, which repairs nothing; give it another"
            " prompt, or use recovery=none"
        )
    beginning = beginning or bank.beginning or Beginning()
    ahead = beginning.ahead_of_prompt

    def of_prompt(prompt: torch.Tensor, long: bool | None) -> Prefixes:
        if not ahead and not len(prompt):  # no pass takes no tokens: one in its place says what there is none of
            return of_prompt(prompt.new_zeros(1, wanted), long).emptied()
        run = states(model, bank.kind, prompt, ahead, long)
        again = functools.partial(states, model, bank.kind, prompt, ahead, long)
        for keys, values in run:
            finite.check(keys, model, again, "a prompt's keys")
            finite.check(values, model, again, "a prompt's values")
        return _prefix_of(model, run, long)

    def bound(long: bool | None) -> Prefixes:
        made = []
        for number, prompt in enumerate(bank.prompts):
            mixture = mixtures[number : number + 1] if mixtures is not None else None
            with following(mixture):
                made.append(of_prompt(prompt, long))
            made[-1].experts = mixture
        together = Prefixes.stack(made)
        together.beginning = beginning
        return together

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
            assert whose is not None  # those for long texts are there where frequencies change
            cache = whose.cache(torch.tensor([prompt], device=device))
        with frequencies(model, long):
            model.base_model(
                input_ids=torch.tensor([tokens], device=device),
                attention_mask=attention_mask(model, visible[None], positions[:, before:], positions),
                position_ids=positions[:, before:],
                past_key_values=cache,
                use_cache=True,
            )
        made = _prefix_of(model, [(layer.keys, layer.values) for layer in cache.layers], long)
        made.experts = cache.experts
        return made

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
    batch, ahead = begun(batch, beginning.ahead_of_text), beginning.ahead_of_prompt
    switch, length = switch_of(model.config), len(ahead) + len(prompt)
    made = states(model, kind, prompt, ahead, None if switch is None else length + batch.shape[1] > switch)
    return behind_states(model, made, batch)


def behind_states(model: PreTrainedModel, made: Layers, batch: torch.Tensor) -> dict[str, Any]:
    """What the model is called with for a batch, [rows, tokens], behind the keys and values of each layer.

    Those are [1 or rows, kv_heads, prefix tokens, head_dim].
    """
    import torch

    (rows, width), length, device = batch.shape, made[0][0].shape[2], batch.device
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


def weighted(tensor: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted mean of m tensors, [m, ...], for each row of `weights` [rows, m]: [rows, ...]."""
    mixed = weights.to(tensor.device).float() @ tensor.float().flatten(1)
    return mixed.to(tensor.dtype).view(len(weights), *tensor.shape[1:])


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
