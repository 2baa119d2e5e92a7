"""The prompt by which the input gains most likelihood over no prompt, and none where it gains too little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Optional

from idp import config
from idp.config import option
from idp.errors import UserError
from idp.prompting.repaired import head_is_bare
from idp.prompting.selectors.base import Selector
from idp.prompting.selectors.likelihood import log_probabilities
from idp.prompting.selectors.threshold import threshold

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from idp.prompting.prefix import Prefixes


@dataclass
class GainSelector(config.Selector):
    margin: Optional[float] = option(
        "nats per token that an input must gain to follow a prompt; null: fitted on held-out text",
        minimum=-100.0,
        maximum=100.0,
    )

    graded: ClassVar[bool] = False  # the empty prompt is among the bank's, and what is no token cannot be mixed
    needs_empty: ClassVar[bool] = True

    @property
    def fits(self) -> bool:
        return self.margin is None

    @property
    def passes(self) -> int:
        return 1

    def build(self) -> Gain:
        return Gain(self.margin)


class Gain(Selector):
    """`s_i = mean over tokens t of log p(x_t | prompt i, x_<t) - log p(x_t | x_<t)`, and the margin for the empty one.

    Without a margin the highest score is that of the likelihood: what is new is when no prompt is worth its harm.

    Args:
        margin: nats per token; None: what `fit` finds, with which the chosen prompts lose least on held-out text.
    """

    def __init__(self, margin: float | None = None):
        self.given = self.margin = margin

    def bind(self, model: PreTrainedModel, prefixes: Prefixes) -> None:
        super().bind(model, prefixes)
        lengths = prefixes.own_lengths.tolist()
        if 0 not in lengths:
            raise UserError(
                "recovery.selector=gain: the bank has no empty prompt, over which another could gain; use"
                " recovery/selector=likelihood"
            )
        self.empty = lengths.index(0)
        self.bare = head_is_bare(model)

    def scores(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        gains = self.gains(contexts)
        gains[:, self.empty] = self.margin
        return gains

    def gains(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        """What each context gains by each prompt, nats per token, [contexts, prompts]; 0 by the empty one."""
        found = log_probabilities(self.model, self.prefixes, contexts, self.bare)
        return found - found[:, self.empty, None]

    def fit(self, contexts: Sequence[Sequence[int]], losses: torch.Tensor) -> None:
        others = [prompt for prompt in range(losses.shape[1]) if prompt != self.empty]
        found = threshold(self.gains(contexts)[:, others], losses[:, others], losses[:, self.empty])
        self.restore({"margin": found})

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        return {"margin": torch.tensor([self.margin])} if self.given is None else {}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.margin = float(state["margin"])

    def described(self) -> dict[str, Any]:
        return {"margin": self.margin}

    @property
    def added(self) -> int:
        return 1 if self.given is None else 0
