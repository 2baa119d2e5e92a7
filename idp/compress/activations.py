"""The inputs of a model's layers, shown to whoever asks: one hook, and one pass over calibration text.

An `Observer` is told of every input of one layer, a batch at a time, and once more when all of them have passed. It
keeps what it needs of them (a norm, a product of moments) and never the inputs themselves:

    class Moments(Observer):
        def see(self, layer, inputs, outputs):
            self.moments = getattr(self, "moments", 0) + inputs.float().T @ inputs.float()

        def finish(self, layer):
            ...  # the last chance to make something small of it

    observe(model, blocks, {name: Moments() for name in compressed_layers(model)})

`observe` goes through the model one decoder layer at a time: all blocks through the first, then through the second. So
statistics of one decoder layer's matrices are held at a time, however deep the model is. Whoever has a forward pass of
its own, such as llmcompressor's calibration, has the same observers watch it by `watching`.

This file imports torch in its functions, so that a kind's file may derive from `Observer`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from idp.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from idp.compress.forward import Call, LayeredForward

log = logging.getLogger(__name__)

BATCH_TOKENS = 1024  # of a forward pass


class Observer:
    """What is told of a linear layer's inputs; one object may be given for several layers."""

    def see(self, layer: nn.Linear, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """One batch.

        Args:
            layer: whose it is.
            inputs: [tokens, in_features], in the model's dtype, without a NaN or an infinity; not to be changed, nor
                kept. Of an expert those of the tokens that were sent to it; where there are none it is not called.
            outputs: [tokens, out_features], what the layer makes of them; not looked at.
        """
        raise NotImplementedError

    def finish(self, layer: nn.Linear) -> None:
        """All inputs of the layer have passed; what is held of it may be made small, or the layer's weight changed."""


Observers = Mapping[str, Observer]  # by the layer's name in the model


def observe(
    model: nn.Module,
    blocks: torch.Tensor,
    observers: Observers,
    *,
    changing: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    done: Callable[[], None] = lambda: None,
) -> None:
    """Shows the observers every input of their layers while `blocks` go through the model once, layer by layer.

    Where a model's layers cannot be called one by one and be held to its own forward pass, whole batches run through it
    plainly instead: the inputs are the same, and every observer keeps what it has until the end.

    Args:
        model: whose layers they are; its weights stay as they are, but for what `Observer.finish` changes.
        blocks: token ids [samples, tokens].
        observers: by the name of their linear layer.
        changing: `finish` changes its layer's weight, and the layers behind see what the changed one makes, as
            compression in sequence wants it.
        batch_tokens: of a forward pass, in whole blocks.
        done: called after each decoder layer.

    Raises:
        UserError: an input is not finite; or `changing`, and the layers cannot be called one by one.
    """
    import torch

    device = model.get_input_embeddings().weight.device
    batches = [batch.to(device) for batch in blocks.split(max(1, batch_tokens // blocks.shape[1]))]
    with torch.no_grad():
        forward = _taken_apart(model, batches[0], required=changing)
        if forward is None:
            _at_once(model, batches, observers)
        else:
            _layer_by_layer(forward, batches, observers, changing, done)


@contextlib.contextmanager
def watching(model: nn.Module, *observers: Observers) -> Iterator[None]:
    """Within this, every forward pass of `model` is shown to the observers; nothing is finished."""
    handles = [
        model.get_submodule(name).register_forward_hook(hook(name, observer))
        for group in observers
        for name, observer in group.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hook(name: str, observer: Observer) -> Callable[[Any, tuple[torch.Tensor, ...], torch.Tensor], None]:
    """The forward hook of torch that shows an observer what goes through the layer called `name`."""
    from idp.compress.guard import refuse_not_finite

    def show(module: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if not arguments[0].numel():
            return
        refuse_not_finite(arguments[0], f"the input of {name}", module.weight.dtype)
        observer.see(module, arguments[0].flatten(0, -2), output.flatten(0, -2))

    return show


def _taken_apart(model: nn.Module, input_ids: torch.Tensor, required: bool) -> LayeredForward | None:
    """The model at its decoder layers, held to its own forward pass on one batch; None where it cannot be.

    Raises:
        UserError: it is `required` and cannot be.
    """
    from idp.compress import guard
    from idp.compress.forward import LayeredForward, decoder_layers
    from idp.errors import lacks_memory

    layers = decoder_layers(model)
    forward = LayeredForward(model, layers)
    try:
        guard.check(forward, input_ids, guard.plain_states(model, layers, input_ids))
    except (UserError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if lacks_memory(error):
            raise
        if required:
            if isinstance(error, UserError):
                raise
            raise forward.refusal(f"its layers, called one by one, fail ({type(error).__name__}: {error})") from error
        log.warning("activations: %s goes through as a whole, not layer by layer: %s", type(model).__name__, error)
        return None
    return forward


def _at_once(model: nn.Module, batches: list[torch.Tensor], observers: Observers) -> None:
    with watching(model, observers):
        for batch in batches:
            model(input_ids=batch, use_cache=False)
    for name, observer in observers.items():
        observer.finish(model.get_submodule(name))


def _layer_by_layer(
    forward: LayeredForward,
    batches: list[torch.Tensor],
    observers: Observers,
    changing: bool,
    done: Callable[[], None],
) -> None:
    model = forward.model
    names = {id(model.get_submodule(name)): name for name in observers}

    def inside(modules: list[nn.Module]) -> dict[str, Observer]:
        found = [names.pop(id(module)) for module in modules if id(module) in names]
        return {name: observers[name] for name in found}

    if before := inside(forward.before):
        with watching(model, before):
            for batch in batches:
                forward.until_layers(batch)
        _finish(model, before)
    states, calls = _called(forward, batches)
    for index, layer in enumerate(forward.layers):
        within = inside(list(layer.modules()))
        with watching(model, within):
            made = [_made(forward, index, states[number], calls[number]) for number in range(len(batches))]
        _finish(model, within)
        if changing and within:
            made = [_made(forward, index, states[number], calls[number]) for number in range(len(batches))]
        states = made
        done()
    if behind := inside(forward.behind):
        with watching(model, behind):  # what is before the layers runs again, and has been seen
            for batch, state in zip(batches, states, strict=True):
                forward.behind_layers(batch, state.to(batch.device), then=lambda: None)
        _finish(model, behind)
    if names:
        raise ValueError(f"{next(iter(names.values()))} is not called in a forward pass of {type(model).__name__}")


def _called(forward: LayeredForward, batches: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[list[Call]]]:
    """The first layer's hidden states of each batch, in main memory, and how every layer is called with it."""
    states, calls = [], []
    for hidden, each in forward.shared_calls(batches):
        states.append(hidden.cpu())
        calls.append(each)
    return states, calls


def _made(forward: LayeredForward, index: int, state: torch.Tensor, calls: list[Call]) -> torch.Tensor:
    """What layer `index` makes of a batch, [batch, tokens, hidden], in main memory."""
    device = next(forward.layers[index].parameters()).device
    hidden = state.to(device, copy=True)  # a layer may write into what it is given
    return forward.layer(index, hidden, calls[index]).cpu()


def _finish(model: nn.Module, observers: Observers) -> None:
    for name, observer in observers.items():
        observer.finish(model.get_submodule(name))
