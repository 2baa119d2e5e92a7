"""Gradient checkpointing by decoder layer (Chen et al., 1604.06174): the backward pass computes each layer anew.

Kept are the hidden states between layers, and within one layer at a time all that its gradient needs. Values and
gradients are the same bits as without, where a layer computed twice gives the same bits. transformers' own
checkpointing drops the cache, and so the prompt that is in it; here each run of a layer is given a cache of its own.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache

from idp.compress.forward import decoder_layers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@contextlib.contextmanager
def checkpointed(model: PreTrainedModel, keep_cache: bool = False) -> Iterator[None]:
    """Within the block, decoder layers called with gradients keep their inputs only; the backward pass may come after.

    Args:
        model: a causal language model; its layers may lie on several devices and carry adapters.
        keep_cache: the cache that the model is called with holds the layers' keys and values afterwards; else it stays
            as it was, and no layer's keys and values outlive the layer.
    """
    layers, config = decoder_layers(model), model.config.get_text_config()
    originals = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = _recomputed(layer, config, keep_cache)
        yield
    finally:
        for layer, forward in zip(layers, originals, strict=True):
            if forward is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.forward = forward


def _recomputed(layer: nn.Module, config: PretrainedConfig, keep_cache: bool) -> Callable:
    forward = layer.forward

    def call(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        # As it is now: a cache that later layers write to must not reach the second run of this one.
        given = _Caches((*arguments, *named.values()))
        kept: list[_Caches | None] = [None] if keep_cache else []

        def run(*arguments: Any, **named: Any) -> Any:
            fresh = given.copy()
            if kept:  # the first run's; the second's do not outlive it
                kept[0] = fresh
            return forward(*map(fresh.of, arguments), **{name: fresh.of(value) for name, value in named.items()})

        found = checkpoint(
            run,
            *arguments,
            use_reentrant=False,
            preserve_rng_state=False,  # torch takes the inputs' devices for the layer's
            context_fn=lambda: (contextlib.nullcontext(), _as_now(layer, config)),
            **named,
        )
        if kept and (first := kept.pop()) is not None:
            first.hand_back()
        return found

    return call


class _Caches:
    """The caches among a layer's arguments as they are now; their tensors are shared, not copied."""

    def __init__(self, arguments: tuple[Any, ...]):
        self.originals = [each for each in arguments if isinstance(each, Cache)]
        self.states = [_copy(cache) for cache in self.originals]

    def copy(self) -> _Caches:
        fresh = copy.copy(self)
        fresh.states = [_copy(cache) for cache in self.states]
        return fresh

    def of(self, argument: Any) -> Any:
        """The copy of an original; what is no cache stays what it is."""
        states = (state for original, state in zip(self.originals, self.states, strict=True) if original is argument)
        return next(states, argument)

    def hand_back(self) -> None:
        """Puts the copies' contents into the originals."""
        for original, state in zip(self.originals, self.states, strict=True):
            original.layers[:] = state.layers


def _copy(cache: Cache) -> Cache:
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def _as_now(layer: nn.Module, config: PretrainedConfig) -> contextlib.AbstractContextManager[None]:
    """A block in which a layer computes as it would now: with this attention, these parameters and replaced parts,
    these draws."""
    attention = config._attn_implementation
    parameters = [(module._parameters, dict(module._parameters)) for module in layer.modules()]
    replaced = {module: module.__dict__.get("forward") for module in layer.modules() if module is not layer}
    states = _generators(layer) if layer.training else {}

    @contextlib.contextmanager
    def as_now() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_attending(config, attention))
            stack.enter_context(_with_parameters(parameters))
            stack.enter_context(_with_forwards(replaced))
            for device, state in states.items():
                stack.enter_context(_drawing(device, state))
            yield

    return as_now()


@contextlib.contextmanager
def _attending(config: PretrainedConfig, implementation: str) -> Iterator[None]:
    before = config._attn_implementation
    config._attn_implementation = implementation
    try:
        yield
    finally:
        config._attn_implementation = before


@contextlib.contextmanager
def _with_parameters(wanted: list[tuple[dict[str, Any], dict[str, Any]]]) -> Iterator[None]:
    """Modules with the parameters that they are to have: trained values are in their place during a pass only."""
    other = [(held, then) for held, then in wanted if any(held[name] is not value for name, value in then.items())]
    before = [(held, dict(held)) for held, _ in other]
    try:
        for held, then in other:
            held.update(then)
        yield
    finally:
        for held, was in before:
            held.update(was)


@contextlib.contextmanager
def _with_forwards(wanted: dict[nn.Module, Callable | None]) -> Iterator[None]:
    """Modules with the `forward` of their own that they are to have; None: that of their class."""
    before = {
        module: module.__dict__.get("forward")
        for module, forward in wanted.items()
        if module.__dict__.get("forward") is not forward
    }
    try:
        _set_forwards({module: wanted[module] for module in before})
        yield
    finally:
        _set_forwards(before)


def _set_forwards(forwards: dict[nn.Module, Callable | None]) -> None:
    for module, forward in forwards.items():
        if forward is None:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = forward


def _generators(layer: nn.Module) -> dict[torch.device, torch.Tensor]:
    """The states of the generators that a layer's dropout may draw from: the CPU's and its own devices'."""
    states = {torch.device("cpu"): torch.get_rng_state()}
    for device in {parameter.device for parameter in layer.parameters()}:
        module = getattr(torch, device.type, None)
        if module is not None and device.type not in ("cpu", "meta") and hasattr(module, "get_rng_state"):
            states[device] = module.get_rng_state(device)
    return states


@contextlib.contextmanager
def _drawing(device: torch.device, state: torch.Tensor) -> Iterator[None]:
    """A device's generator in a state, and afterwards as it was."""
    if device.type == "cpu":
        before = torch.get_rng_state()
        torch.set_rng_state(state)
        try:
            yield
        finally:
            torch.set_rng_state(before)
        return
    module = getattr(torch, device.type)
    before = module.get_rng_state(device)
    module.set_rng_state(state, device)
    try:
        yield
    finally:
        module.set_rng_state(before, device)
