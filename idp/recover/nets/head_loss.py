"""Losses at the output head, a few places at a time, without ever holding all logits.

The logits of a training batch are its largest tensor by far (512 tokens of a vocabulary of 49,152 in float32: 100 MB),
and the plain way writes several of that size. The head's weights are frozen, so a loss needs one gradient only, that of
the hidden states, and each place's is known as soon as its logits are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.functional import linear, log_softmax

from idp.prompting.repaired import CPU_LOGITS

# Logits at a time elsewhere than on a CPU: their temporaries in float32 stay below what one decoder layer of seven
# billion parameters takes, so that they never set a step's peak.
GPU_LOGITS = 2**24

# Of logits [places, vocabulary] at the given places: the losses' sum, and its gradient where that is wanted.
Loss = Callable[[torch.Tensor, slice, bool], tuple[torch.Tensor, torch.Tensor | None]]


def head_loss(hidden: torch.Tensor, head: torch.nn.Linear, loss: Loss) -> torch.Tensor:
    """The mean loss over places, whose gradient flows to `hidden` alone.

    Args:
        hidden: [places, hidden_size], what the head is given; on another device than the head's, where a model is
            spread over several, it is taken there.
        head: the output head, frozen.
        loss: the losses of a few places.
    """
    return _HeadLoss.apply(hidden.to(head.weight.device), head.weight, head.bias, loss)


def logits_loss(logits: torch.Tensor, loss: Loss) -> torch.Tensor:
    """The mean loss over places whose logits, [places, vocabulary], are there already; the gradient flows to them."""
    return _HeadLoss.apply(logits, None, None, loss)


def place_losses(hidden: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats at each place, [places], whose gradient flows to `hidden` alone.

    Args:
        hidden: as for `head_loss`.
        head: the output head, frozen.
        targets: [places], the tokens that follow.
    """
    where = head.weight.device
    return _PlaceLosses.apply(hidden.to(where), head.weight, head.bias, targets.to(where))


class _PlaceLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> torch.Tensor:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else torch.empty(0)
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        for places in pieces(hidden, len(weight)):
            logs = log_softmax(linear(hidden[places], weight, bias), dim=-1, dtype=torch.float32)
            target = targets[places, None]
            losses[places] = -logs.gather(1, target)[:, 0]
            if wanted:
                slope = logs.exp_().scatter_add_(1, target, target.new_full(target.shape, -1, dtype=torch.float32))
                gradient[places] = slope.to(hidden.dtype) @ weight
        ctx.save_for_backward(*([gradient] if wanted else []))
        return losses

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * slope[:, None].to(gradient.dtype), None, None, None


def pieces(hidden: torch.Tensor, vocabulary: int) -> Iterator[slice]:
    """The places of `hidden`, [places, ...], so few at a time that their logits fit."""
    few = max(1, (CPU_LOGITS if hidden.device.type == "cpu" else GPU_LOGITS) // vocabulary)
    for start in range(0, len(hidden), few):
        yield slice(start, min(start + few, len(hidden)))


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, loss: Loss
    ) -> torch.Tensor:
        vocabulary = hidden.shape[1] if weight is None else len(weight)
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else torch.empty(0)
        total = torch.zeros((), device=hidden.device)
        for places in pieces(hidden, vocabulary):
            logits = hidden[places] if weight is None else linear(hidden[places], weight, bias)
            summed, slope = loss(logits, places, wanted)
            total += summed
            if slope is not None:
                slope = slope.to(hidden.dtype)
                gradient[places] = slope if weight is None else slope @ weight
        ctx.save_for_backward(*([gradient] if wanted else []))
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors  # of the losses' sum: dividing here saves a pass over the logits
        return gradient * (slope / len(gradient)), None, None, None


def lm(targets: torch.Tensor) -> Loss:
    """Cross-entropy in nats; `targets` is [places], the tokens that follow."""

    def loss(logits: torch.Tensor, places: slice, wanted: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        target = targets[places, None]
        logs = log_softmax(logits, dim=-1, dtype=torch.float32)
        summed = -logs.gather(1, target).sum()
        if not wanted:
            return summed, None
        return summed, logs.exp_().scatter_add_(1, target, target.new_full(target.shape, -1, dtype=torch.float32))

    return loss


def distill(teacher: Callable[[slice], torch.Tensor], temperature: float) -> Loss:
    """KL of the teacher's next-token distribution to the student's, in nats (Hinton et al., 1503.02531).

        T^2 * sum_v p_v (log p_v - log q_v),   p = softmax(teacher / T), q = softmax(student / T)

    The factor T^2 keeps the size of its gradient whatever T is.

    Args:
        teacher: the teacher's logits at some places, [places, vocabulary].
        temperature: T.
    """

    def loss(logits: torch.Tensor, places: slice, wanted: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        student = log_softmax(logits / temperature, dim=-1, dtype=torch.float32)
        given = log_softmax(teacher(places) / temperature, dim=-1, dtype=torch.float32)
        shares = given.exp()
        summed = given.sub_(student).mul_(shares).sum() * temperature**2
        return summed, student.exp_().sub_(shares).mul_(temperature) if wanted else None

    return loss


def distill_kept(
    taught: Callable[[slice], tuple[torch.Tensor, torch.Tensor, torch.Tensor]], top: int, temperature: float
) -> Loss:
    """`distill`, given of the teacher's distributions only some tokens (`idp.evaluate.tails.cut`).

    By the chain rule the KL is that over the `top` most likely tokens and one class for all others, which is exact,
    plus the others' mass R times the divergence of both models within them. That is estimated without bias from
    tokens drawn as the teacher has them: the mean of r - 1 - log r, r being a token's probability among the others in
    the student, divided by that in the teacher. It is 0 where both are equal, and so is its gradient (k3 of Schulman,
    "Approximating KL Divergence", 2020).

    Args:
        taught: of some places the tokens [places, top + drawn], their log-probabilities and the log of the others'
            mass [places], all softened by the temperature.
        top: how many of the tokens are the most likely ones.
        temperature: T.
    """

    def loss(logits: torch.Tensor, places: slice, wanted: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        ids, given, rest = taught(places)
        student = log_softmax(logits / temperature if temperature != 1 else logits, dim=-1, dtype=torch.float32)
        likely, drawn = ids[:, :top], ids[:, top:]
        ours = student.gather(1, ids)
        slope = student.exp_().scatter_(1, likely, 0.0)
        tail = slope.sum(1, keepdim=True).clamp_min_(torch.finfo(slope.dtype).tiny)
        theirs = torch.cat([given[:, :top], rest[:, None]], dim=1).log_softmax(dim=1)  # they were rounded
        both = torch.cat([ours[:, :top], tail.log()], dim=1)
        shares = theirs.exp()
        losses = torch.where(theirs.isneginf(), 0.0, shares * (theirs - both)).sum(1)
        mass, over = shares[:, -1:], torch.zeros_like(ours[:, top:])
        if drawn.shape[1]:
            ratio = ours[:, top:] - tail.log() - (given[:, top:] - rest[:, None])
            ratio = torch.where(mass > 0, ratio, 0.0)
            over = mass / drawn.shape[1] * ratio.expm1()
            losses += (over - mass / drawn.shape[1] * ratio).sum(1)
        summed = losses.sum() * temperature**2
        if not wanted:
            return summed, None
        slope.mul_((tail - mass - over.sum(1, keepdim=True)) / tail)
        slope.scatter_(1, likely, ours[:, :top].exp() - shares[:, :-1])
        return summed, slope.scatter_add_(1, drawn, over).mul_(temperature)

    return loss


def mixture(one: Loss, other: Loss, share: float) -> Loss:
    """`(1 - share) * one + share * other`."""

    def loss(logits: torch.Tensor, places: slice, wanted: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        (a, slope), (b, other_slope) = one(logits, places, wanted), other(logits, places, wanted)
        mixed = (1 - share) * a + share * b
        if slope is None or other_slope is None:  # neither is wanted
            return mixed, None
        return mixed, slope.mul_(1 - share).add_(other_slope, alpha=share)

    return loss
