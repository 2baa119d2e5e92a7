"""A control: one prompt for every input, by its number or by its loss on held-out text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from idp import config
from idp.config import option
from idp.errors import UserError
from idp.prompting.selectors.base import Selector

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from idp.prompting.prefix import Prefixes


@dataclass
class FixedSelector(config.Selector):
    graded: ClassVar[bool] = False

    prompt: Any = option("best or worst by held-out loss, or a prompt's number, from 0")

    @property
    def fits(self) -> bool:
        return not isinstance(self.prompt, int)

    @property
    def constant(self) -> bool:
        return True

    def check(self) -> None:
        number = isinstance(self.prompt, int) and not isinstance(self.prompt, bool) and self.prompt >= 0
        if not number and self.prompt not in ("best", "worst"):
            raise UserError(f"recovery.selector.prompt={self.prompt}: use best, worst or a prompt's number, from 0")

    def check_model(self, model: Any, prompts: int | None = None) -> None:
        if prompts is not None:
            self.check_prompts(prompts)

    def check_prompts(self, prompts: int) -> None:
        if isinstance(self.prompt, int) and self.prompt >= prompts:
            raise UserError(f"recovery.selector.prompt={self.prompt}: the bank has prompts 0 to {prompts - 1}")

    @property
    def settles(self) -> bool:
        return self.fits

    def settled(self, fitted: dict[str, Any]) -> FixedSelector:
        """The best prompt by held-out loss is that prompt."""
        return fixed(fitted["prompt"])

    @property
    def reads_layers(self) -> int:
        return 0

    def build(self) -> Fixed:
        return Fixed(self.prompt)


def fixed(prompt: int) -> FixedSelector:
    """The selector that always takes one prompt."""
    return FixedSelector(kind="fixed", prompt=prompt)


class Fixed(Selector):
    """The same prompt always.

    Args:
        prompt: its number, from 0; or `best` or `worst`, that with the least or greatest mean loss, which needs `fit`.
    """

    def __init__(self, prompt: int | str):
        self.prompt = prompt

    def bind(self, model: PreTrainedModel, prefixes: Prefixes) -> None:
        super().bind(model, prefixes)
        m = len(prefixes.lengths)
        if isinstance(self.prompt, int) and self.prompt >= m:
            raise UserError(f"recovery.selector.prompt={self.prompt}: the bank has prompts 0 to {m - 1}")

    def fit(self, contexts: Sequence[Sequence[int]], losses: torch.Tensor) -> None:
        mean = losses.double().mean(0)
        if self.prompt == "best":
            self.prompt = int(mean.argmin())
        elif self.prompt == "worst":
            self.prompt = int(mean.argmax())

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        return {"prompt": torch.tensor([self.prompt])}

    def described(self) -> dict[str, Any]:
        return {"prompt": self.prompt}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.prompt = int(state["prompt"])

    def scores(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        import torch

        lengths = self.prefixes.lengths
        scores = torch.zeros(len(contexts), len(lengths), device=lengths.device)
        scores[:, self.prompt] = 1.0
        return scores
