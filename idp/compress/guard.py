"""Calibration held to the model's own forward pass, and its values held to be finite.

What a layer is calibrated on decides what it becomes, and nothing afterwards shows that it was the wrong thing: a lost
causal mask leaves a model that is compressed, saved, measured, and bad. So one block runs through the model plainly,
before anything is changed, and through the layers as calibration will call them, and the two must agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from idp.compress.forward import LayeredForward
from idp.errors import UserError

# Largest difference, relative to the size of a token's hidden state, between two passes of the same operations.
SAME = {torch.float32: 1e-3, torch.float64: 1e-6}
# Largest mean difference between two attention implementations; in half precision a router may choose another expert.
ALIKE = {torch.float32: 2e-3, torch.float64: 1e-5}
# The same for types of 8 to 11 bits.
HALF_SAME, HALF_ALIKE = 2e-2, 0.1

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
    own = forward.learn(input_ids)
    for index, (one, other) in enumerate(zip(own, plain, strict=True)):
        difference = float(_differences(one, other).mean())
        if not difference <= ALIKE.get(dtype, HALF_ALIKE):
            raise _refusal(forward, index, difference, ALIKE.get(dtype, HALF_ALIKE))
    hidden, calls = forward.calls(input_ids)
    for index, expected in enumerate(own):
        difference = float(_differences(hidden, expected).max())
        if not difference <= SAME.get(dtype, HALF_SAME):
            raise _refusal(forward, index, difference, SAME.get(dtype, HALF_SAME))
        if index < len(calls):
            hidden = forward.layer(index, hidden.clone(), calls[index])


def refuse_not_finite(values: torch.Tensor, where: str, dtype: torch.dtype) -> None:
    """Refuses values with a NaN or an infinity.

    Raises:
        UserError: says where, in which dtype, and what to do.
    """
    low, high = torch.aminmax(values)  # a NaN anywhere is the answer to both; no copy is made
    if bool(torch.isfinite(low) & torch.isfinite(high)):
        return
    name = str(dtype).removeprefix("torch.")
    if dtype == torch.float16:
        advice = "float16 ends at 65504: use model.dtype=bfloat16 or float32"
    elif dtype == torch.float32:
        advice = "check the model's weights and its config"
    else:
        advice = "use model.dtype=float32"
    raise UserError(f"compress: calibration in {name}: {where} has values that are NaN or infinite; {advice}")


def _differences(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Of each token, how far the one is from the other relative to the other's size, [batch, tokens].

    Token by token, because a few tokens' states are often hundreds of times larger than the rest.
    """
    other = other.to(one.device).float()
    return (one.float() - other).norm(dim=-1) / other.norm(dim=-1).clamp_min(1e-12)


def _refusal(forward: LayeredForward, index: int, difference: float, bound: float) -> UserError:
    if index < len(forward.layers):
        what = f"{forward.names[index]} would be calibrated on inputs"
    else:
        what = f"{forward.names[-1]} would be calibrated with outputs"
    return UserError(
        f"compress: {type(forward.model).__name__}: {what} that are {difference:.2g} away from those of the model's own"
        f" forward pass (allowed in {str(forward.model.dtype).removeprefix('torch.')}: {bound:g}); use {NO_DATA}"
    )


@dataclass
class CalibratedLayer:
    """The decoder layer that is being compressed."""

    name: str
    hidden: torch.Tensor  # what it is given for the first batch of calibration blocks, [batch, tokens, hidden]
    run: Callable[[], torch.Tensor]  # what it makes of that as its weights stand, [batch, tokens, hidden]
