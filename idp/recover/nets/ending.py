"""A model's logits out of its last hidden states, a few places at a time, where more than a head stands behind them.

Soft caps and scales behind the head are the model's own code, and work place by place: it is run on a few places with
their hidden states put where those of its decoder come out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from idp.recover.nets.head_loss import Loss, pieces

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Ending:
    """What a causal language model does behind its decoder."""

    def __init__(self, model: PreTrainedModel):
        self.model, self.decoder = model, model.base_model

    @classmethod
    def of(cls, model: PreTrainedModel) -> Ending | None:
        """The ending of a model; None where its decoder and what is behind it cannot be told apart: tried out."""
        ending = cls(model)
        inputs = {"input_ids": torch.tensor([[0, 1]], device=model.get_input_embeddings().weight.device)}
        with torch.no_grad():
            try:
                found = ending.logits(ending.hidden(inputs)[0])
            except (RuntimeError, TypeError, ValueError, AttributeError, KeyError):
                return None
            return ending if torch.equal(found, model(**inputs, use_cache=False).logits[0]) else None

    def hidden(self, inputs: dict[str, Any]) -> torch.Tensor:
        """What the decoder gives, [rows, tokens, hidden_size]."""
        return self.decoder(**inputs).last_hidden_state

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [places, vocabulary] of hidden states [places, hidden_size]."""
        tokens = torch.zeros(1, len(hidden), dtype=torch.long, device=self.model.get_input_embeddings().weight.device)
        with self._giving(hidden):
            return self.model(input_ids=tokens, use_cache=False).logits[0]

    @contextlib.contextmanager
    def _giving(self, hidden: torch.Tensor) -> Iterator[None]:
        original = self.decoder.__dict__.get("forward")
        given = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden[None])
        self.decoder.forward = lambda *_, **__: given
        try:
            yield
        finally:
            if original is None:
                del self.decoder.forward
            else:
                self.decoder.forward = original


def ending_loss(hidden: torch.Tensor, ending: Ending, loss: Loss) -> torch.Tensor:
    """The mean loss over places, whose gradient flows to `hidden`, [places, hidden_size], alone."""
    return _EndingLoss.apply(hidden, ending, loss)


class _EndingLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, ending: Ending, loss: Loss) -> torch.Tensor:
        wanted, head = ctx.needs_input_grad[0], ending.model.get_output_embeddings().weight
        gradient = torch.empty_like(hidden) if wanted else torch.empty(0)
        total = torch.zeros((), device=hidden.device)
        for places in pieces(hidden, len(head)):
            with torch.set_grad_enabled(wanted):
                leaf = hidden[places].detach().requires_grad_(wanted)
                logits = ending.logits(leaf).to(head.device)  # a model spread over devices gives them elsewhere
            summed, slope = loss(logits.detach(), places, wanted)
            total += summed.to(total.device)
            if slope is not None:
                (gradient[places],) = torch.autograd.grad(logits, leaf, slope.to(logits.dtype))
        ctx.save_for_backward(*([gradient] if wanted else []))
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * (slope / len(gradient)), None, None
