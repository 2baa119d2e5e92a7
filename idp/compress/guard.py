"""Calibration held to the model's own forward pass, and its values held to be finite.

What a layer is calibrated on decides what it becomes, and nothing afterwards shows that it was the wrong thing: a lost
causal mask leaves a model that is compressed, saved, measured, and bad. So one block runs through the model plainly,
before anything is changed, and through the layers as calibration will call them, and the two must agree.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from idp.compress.forward import LayeredForward
from idp.errors import UserError

# Largest difference of a token's hidden states, relative to their size, between two passes of the same operations.
SAME = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 2e-2}
# Largest mean difference where the operations are others and the function is the same: another attention
# implementation, experts taken apart, scales moved from one layer to another.
ALIKE = {torch.float64: 1e-6, torch.float32: 2e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}
NO_DATA = "compressor.quantization.method=rtn or compressor.sparsity.method=magnitude, which need no calibration"


def plain_states(model: nn.Module, layers: list[nn.Module], input_ids: torch.Tensor) -> list[torch.Tensor]:
    """The hidden states [batch, tokens, hidden] before each layer and behind the last, from a plain forward pass.

    Args:
        model: as it was loaded, with its own attention.
        layers: its decoder layers.
        input_ids: calibration blocks [batch, tokens].

    Raises:
        UserError: a value is not finite, or the model cannot be taken apart at its layers.
    """
    forward = LayeredForward(model, layers)
    with torch.inference_mode():
        states = forward.learn(input_ids.to(model.get_input_embeddings().weight.device))
    for index, state in enumerate(states):
        where = f"the output of {forward.names[index - 1]}" if index else "the embeddings"
        refuse_not_finite(state, where, model.dtype)
    return states


def alike(states: list[torch.Tensor], plain: list[torch.Tensor], dtype: torch.dtype) -> bool:
    """Whether two passes have the same hidden states [batch, tokens, hidden] at every layer, but for rounding."""
    return all(float(_differences(one, other).mean()) <= ALIKE[dtype] for one, other in zip(states, plain, strict=True))


def check(forward: LayeredForward, input_ids: torch.Tensor, plain: list[torch.Tensor]) -> None:
    """Compares the layers as calibration calls them with the model's own forward pass; changes nothing.

    Args:
        forward: the model in the state in which it is calibrated.
        input_ids: calibration blocks [batch, tokens].
        plain: what `plain_states` gave for them.

    Raises:
        UserError: names the class, and the first layer that would be calibrated on something else.
    """
    dtype = forward.model.dtype
    states = forward.learn(input_ids)
    for index, (one, other) in enumerate(zip(states, plain, strict=True)):
        _hold(forward, index, float(_differences(one, other).mean()), ALIKE[dtype])
    hidden, calls = forward.calls(input_ids)
    for index, expected in enumerate(states):
        _hold(forward, index, float(_differences(hidden, expected).max()), SAME[dtype])
        if index < len(calls):
            hidden = forward.layer(index, hidden.clone(), calls[index])


def refuse_not_finite(values: torch.Tensor, where: str, dtype: torch.dtype) -> None:
    """Refuses values with a NaN or an infinity.

    Raises:
        UserError: says where, in which dtype, and what to do.
    """
    if not values.numel():  # an expert that no token has reached
        return
    low, high = torch.aminmax(values)  # a NaN anywhere is the answer to both; no copy is made
    if bool(torch.isfinite(low) & torch.isfinite(high)):
        return
    if dtype == torch.float16:
        advice = "float16 ends at 65504: use model.dtype=bfloat16 or float32"
    elif dtype == torch.float32:
        advice = "check the model's weights and its config"
    else:
        advice = "use model.dtype=float32"
    raise UserError(f"compress: calibration in {_named(dtype)}: {where} has values that are NaN or infinite; {advice}")


@dataclass
class CalibratedLayer:
    """The decoder layer that is being compressed, on the first batch of calibration blocks."""

    name: str
    dtype: torch.dtype
    hidden: torch.Tensor  # what it is given, [batch, tokens, hidden]
    run: Callable[[], torch.Tensor]  # what it makes of that as its weights stand, [batch, tokens, hidden]

    @contextlib.contextmanager
    def unchanged(self, by: str) -> Iterator[None]:
        """Holds the layer to the function that it had, through a change of its weights.

        What the layer adds to its inputs is compared, since that is often far smaller than what passes by it.

        Args:
            by: what changes the weights; begins the message.

        Raises:
            UserError: the layer is another function afterwards.
        """
        before = self._made()
        yield
        after, dtype = self._made(), self.dtype
        hidden = self.hidden.to(before.device).float()
        least = 8 * torch.finfo(dtype).eps * hidden.norm(dim=-1)  # below it the difference is all rounding
        size = torch.maximum((before - hidden).norm(dim=-1), least).clamp_min(1e-12)
        difference = float(((after - before).norm(dim=-1) / size).mean())
        if not difference <= ALIKE[dtype]:
            raise UserError(_changed(by, self.name, difference, dtype))

    def _made(self) -> torch.Tensor:
        from llmcompressor.modifiers.utils.hooks import HooksMixin

        with HooksMixin.disable_hooks():
            return self.run().float()


def last_logits(model: nn.Module, input_ids: torch.Tensor, count: int = 128) -> torch.Tensor:
    """What the output head makes of the last `count` positions of `input_ids` [batch, tokens]; on the CPU, float32."""
    from llmcompressor.modifiers.utils.hooks import HooksMixin
    from llmcompressor.utils.helpers import DisableQuantization

    with torch.inference_mode(), DisableQuantization(model), HooksMixin.disable_hooks():
        ids = input_ids.to(model.get_input_embeddings().weight.device)
        hidden = model.base_model(input_ids=ids, use_cache=False)[0][:, -count:]
        return model.get_output_embeddings()(hidden).float().cpu()


def check_logits(by: str, before: torch.Tensor, after: torch.Tensor, dtype: torch.dtype) -> None:
    """Compares logits [batch, tokens, vocabulary] before and after a change that must leave them as they are.

    Args:
        by: what changed the weights; begins the message.

    Raises:
        UserError: they differ by more than rounding in `dtype`.
    """
    difference = float(_differences(after, before).mean())
    if not difference <= ALIKE[dtype]:
        raise UserError(_changed(by, "the logits", difference, dtype))


def _changed(by: str, what: str, difference: float, dtype: torch.dtype) -> str:
    return (
        f"{by}: its scales alone change {what} by {difference:.2g} (allowed in {_named(dtype)}: {ALIKE[dtype]:g}): its"
        " mappings are wrong for this architecture; use gptq or rtn"
    )


def _differences(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Of each token, how far the one is from the other relative to the other's size, [batch, tokens].

    Token by token, because a few tokens' states are often hundreds of times larger than the rest.
    """
    other = other.to(one.device).float()
    return (one.float() - other).norm(dim=-1) / other.norm(dim=-1).clamp_min(1e-12)


def _hold(forward: LayeredForward, index: int, difference: float, bound: float) -> None:
    """Refuses hidden states before layer `index`, or behind the last, that are further off than `bound`."""
    if difference <= bound:  # a NaN is not
        return
    if index < len(forward.layers):
        what = f"{forward.names[index]} would be calibrated on inputs"
    else:
        what = f"{forward.names[-1]} would be calibrated with outputs"
    raise UserError(
        f"compress: {type(forward.model).__name__}: {what} that are {difference:.2g} away from those of the model's own"
        f" forward pass (allowed in {_named(forward.model.dtype)}: {bound:g}); use {NO_DATA}"
    )


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
