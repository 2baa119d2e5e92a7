"""A model's own forward pass, taken apart at its decoder layers.

GPTQ, SparseGPT, Wanda and AWQ work layer by layer and must call each layer as the model does: with its mask, its
positions, and whatever else that architecture hands over. Here the model's own forward says what that is: it runs with
its layers replaced by stand-ins that note how they are called. Nothing is traced and nothing is known of an
architecture, so that a mask is right whatever code has made it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from idp.errors import UserError

# The arguments of one call of a layer, without the hidden states: positional, by keyword.
Call = tuple[tuple[Any, ...], dict[str, Any]]


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated layers of a decoder: the longest list of modules that is not inside another (experts are)."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inside = {module for outer in lists for module in outer.modules() if module is not outer}
    return list(max((each for each in lists if each not in inside), key=len, default=[]))


class LayeredForward:
    """What a model's own forward does before, between and behind its decoder layers.

    `learn` comes first: it sees which modules outside the layers run before them and which behind, and in what form a
    layer answers.
    """

    def __init__(self, model: nn.Module, layers: list[nn.Module]):
        self.model, self.layers = model, layers
        names = {module: name for name, module in model.named_modules()}
        self.names = [names[layer] for layer in layers]
        self._answers: list[int | None] = []  # the length of the tuple that a layer answers with; None: a tensor
        self._outside: dict[str, list[nn.Module]] = {"before": [], "behind": []}

    def learn(self, input_ids: torch.Tensor) -> list[torch.Tensor]:
        """Runs the model plainly on `input_ids` [batch, tokens].

        Returns:
            the hidden states [batch, tokens, hidden] that each layer receives, and those that the last one gives, on
            the CPU.

        Raises:
            UserError: the layers are not called once each and in order, or do not pass hidden states on.
        """
        states: list[torch.Tensor] = []
        called: list[int] = []
        self._answers = [None] * len(self.layers)

        def noting(index: int, forward: Callable) -> Callable:
            def call(*arguments: Any, **named: Any) -> Any:
                hidden, _ = self._take_apart(arguments, named)
                called.append(index)
                states.append(hidden.to("cpu", copy=True))
                answer = forward(*arguments, **named)
                self._answers[index] = len(answer) if isinstance(answer, tuple) else None
                last = _first(answer)
                if not isinstance(last, torch.Tensor) or last.shape != hidden.shape:
                    raise self.refusal(f"{self.names[index]} does not answer with hidden states like its own")
                if index == len(self.layers) - 1:
                    states.append(last.to("cpu", copy=True))
                return answer

            return call

        with self._noting_outside(called), self._replaced([noting(i, x.forward) for i, x in enumerate(self.layers)]):
            self._forward(input_ids)
        if called != list(range(len(self.layers))):
            raise self.refusal("its forward does not call its decoder layers once each and in order")
        return states

    @property
    def before(self) -> list[nn.Module]:
        """The linear modules outside the decoder layers that run before them, such as OPT-350M's `project_in`."""
        return self._outside["before"]

    @property
    def behind(self) -> list[nn.Module]:
        """The linear modules outside the decoder layers that run behind them, the output head among them."""
        return self._outside["behind"]

    def calls(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, list[Call]]:
        """The first layer's hidden states [batch, tokens, hidden] for `input_ids` [batch, tokens], and every layer's
        call: the layers themselves do not run."""
        first: list[torch.Tensor] = []
        calls: list[Call] = []

        def noting(index: int) -> Callable:
            def call(*arguments: Any, **named: Any) -> Any:
                hidden, rest = self._take_apart(arguments, named)
                first[:] = first or [hidden]
                calls.append(rest)
                if index == len(self.layers) - 1:
                    raise _Enough
                return self._answer(index, hidden)

            return call

        with self._replaced([noting(index) for index in range(len(self.layers))]):
            self._forward(input_ids)
        return first[0], calls

    def shared_calls(self, batches: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, list[Call]]]:
        """`calls` of each batch [rows, tokens]. Masks and positions are nearly always the same for all of them; they
        are then kept once, not once per batch."""
        first: list[Call] | None = None
        for input_ids in batches:
            hidden, calls = self.calls(input_ids)
            calls = calls if first is None else [_shared(call, kept) for call, kept in zip(calls, first, strict=True)]
            first = first or calls
            yield hidden, calls

    def layer(self, index: int, hidden: torch.Tensor, call: Call) -> torch.Tensor:
        """The hidden states [batch, tokens, hidden] that layer `index` makes of `hidden`, called as `call` says."""
        arguments, named = call
        if "hidden_states" in named:
            return _first(self.layers[index](*arguments, **{**named, "hidden_states": hidden}))
        return _first(self.layers[index](hidden, *arguments, **named))

    def until_layers(self, input_ids: torch.Tensor) -> None:
        """Runs what comes before the first layer on `input_ids` [batch, tokens]."""

        def stop(*arguments: Any, **named: Any) -> Any:
            raise _Enough

        with self._replaced([stop] * len(self.layers)):
            self._forward(input_ids)

    def behind_layers(self, input_ids: torch.Tensor, hidden: torch.Tensor, then: Callable[[], None]) -> None:
        """Runs what comes behind the last layer, which gives `hidden`, on `input_ids`; `then` is called in between."""

        def give(index: int) -> Callable:
            def call(*arguments: Any, **named: Any) -> Any:
                if index < len(self.layers) - 1:
                    return self._answer(index, self._take_apart(arguments, named)[0])
                then()
                return self._answer(index, hidden)

            return call

        with self._replaced([give(index) for index in range(len(self.layers))]):
            self._forward(input_ids)

    def refusal(self, why: str) -> UserError:
        """What to raise for a model that cannot be taken apart."""
        return UserError(
            f"compressor: {type(self.model).__name__} cannot be calibrated layer by layer: {why}; use what needs no"
            " calibration: compressor.quantization.method=rtn or compressor.sparsity.method=magnitude"
        )

    def _forward(self, input_ids: torch.Tensor) -> None:
        with contextlib.suppress(_Enough):
            self.model(input_ids=input_ids, use_cache=False)

    def _take_apart(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[torch.Tensor, Call]:
        if arguments:
            hidden, rest = arguments[0], (tuple(arguments[1:]), named)
        else:
            hidden, rest = named.get("hidden_states"), (arguments, {**named, "hidden_states": None})
        if not isinstance(hidden, torch.Tensor):
            raise self.refusal("its decoder layers are not given their hidden states first")
        return hidden, rest

    def _answer(self, index: int, hidden: torch.Tensor) -> Any:
        length = self._answers[index]
        return hidden if length is None else (hidden, *[None] * (length - 1))

    @contextlib.contextmanager
    def _replaced(self, forwards: list[Callable]) -> Iterator[None]:
        """The layers with these in place of their `forward`, which may be an attribute of the layer's own."""
        originals = [layer.__dict__.get("forward") for layer in self.layers]
        try:
            for layer, forward in zip(self.layers, forwards, strict=True):
                layer.__dict__["forward"] = forward
            yield
        finally:
            for layer, forward in zip(self.layers, originals, strict=True):
                if forward is None:
                    layer.__dict__.pop("forward", None)
                else:
                    layer.__dict__["forward"] = forward

    @contextlib.contextmanager
    def _noting_outside(self, called: list[int]) -> Iterator[None]:
        """Notes the linear modules outside the layers as they run; `called` holds the layers that have run."""
        inside = {module for layer in self.layers for module in layer.modules()}
        handles = []
        self._outside = {"before": [], "behind": []}
        for module in self.model.modules():
            if isinstance(module, nn.Linear) and module not in inside:

                def note(module: nn.Module, arguments: Any) -> None:
                    side = self._outside["behind" if called else "before"]
                    if module not in side:
                        side.append(module)

                handles.append(module.register_forward_pre_hook(note))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _Enough(Exception):
    """Ends a forward pass of which no more is wanted."""


def _first(answer: Any) -> Any:
    return answer[0] if isinstance(answer, tuple) else answer


def _shared(call: Call, kept: Call) -> Call:
    """`call` with the tensors of `kept` where they are equal."""
    leaves, form = tree_flatten(call)
    others, other_form = tree_flatten(kept)
    if form != other_form:
        return call
    pairs = zip(leaves, others, strict=True)
    return tree_unflatten([other if _equal(leaf, other) else leaf for leaf, other in pairs], form)


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        return False
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
