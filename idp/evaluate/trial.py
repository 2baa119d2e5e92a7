"""A few rows of random tokens, run each way through one model, and held to its plain forward pass."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idp.errors import UserError
from idp.hub import first_line

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from idp.prompting.repaired import RepairedModel

log = logging.getLogger(__name__)

PACKED, PROMPTED, GENERATION, GENERATION_PROMPTED, TRAINING = PARTS = (
    "packed rows",
    "rows behind prompts",
    "generation",
    "generation behind prompts",
    "the training of a prompt",
)
# Rows as (tokens of the trunk, tokens of each branch): shorter and longer than a window, and on both sides of the
# length at which frequencies change, also branches of one trunk.
ROWS = ((5, (3, 2)), (60, (7, 2, 2)), (29, (1,)), (20, (1, 1)), (45, (2, 9)), (9, (1,)))
SHARED = 19  # tokens of a text that all rows begin with
PROMPTS = (3, 31)  # tokens
STEPS = 6  # of generation


def differences(model: PreTrainedModel) -> dict[str, float | str]:
    """How far each of `PARTS` is from the model's plain forward pass, in units of its logits' spread.

    Args:
        model: a small one, float32.

    Returns:
        by part the largest difference, or what went wrong, in words.
    """
    trial = Trial(model)
    ways: dict[str, Callable[[], float]] = {
        PACKED: lambda: trial.scoring(prompted=False),
        PROMPTED: lambda: trial.scoring(prompted=True),
        GENERATION: lambda: trial.generating(prompted=False),
        GENERATION_PROMPTED: lambda: trial.generating(prompted=True),
        TRAINING: trial.training,
    }
    found: dict[str, float | str] = {}
    for part, way in ways.items():
        try:
            found[part] = way()
        except Exception as error:  # whatever the architecture makes of it
            log.debug("%s: %s", type(model).__name__, part, exc_info=True)
            found[part] = first_line(error) if isinstance(error, UserError) else _described(error)
    return found


@dataclass
class Trial:
    """A few rows of random tokens and two random prompts, run each way through one model."""

    model: PreTrainedModel

    def __post_init__(self) -> None:
        import torch

        self.generator = torch.Generator().manual_seed(0)
        embeddings = self.model.get_input_embeddings()
        self.vocabulary = min(self.model.get_output_embeddings().weight.shape[0], embeddings.weight.shape[0])
        with torch.no_grad():
            self.prompts = [embeddings(self.tokens(length)[None])[0].clone() for length in PROMPTS]

    def tokens(self, count: int) -> torch.Tensor:
        """Random token ids, [count]; none of the first few, which are special ones."""
        import torch

        return torch.randint(4, self.vocabulary, (count,), generator=self.generator)

    def plain(self, tokens: torch.Tensor, prompt: int | None) -> torch.Tensor:
        """The model's own logits for one row, alone, [tokens, vocabulary], its prompt in front as embeddings."""
        import torch

        if prompt is None:
            return self.model(input_ids=tokens[None]).logits[0]
        embedded = self.model.get_input_embeddings()(tokens[None])
        whole = torch.cat([self.prompts[prompt][None], embedded], dim=1)
        return self.model(inputs_embeds=whole).logits[0, len(self.prompts[prompt]) :]

    def repaired(self, prompted: bool) -> RepairedModel:
        """The model, behind the two prompts or none."""
        from idp.models import LoadedModel
        from idp.prompting.bank import PromptBank
        from idp.prompting.repaired import RepairedModel
        from idp.prompting.selectors.base import Selector

        class ByTurns(Selector):
            """Row 0 the first prompt, row 1 the second, and so on: rows say their numbers by what they read."""

            def scores(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
                import torch

                turns = torch.tensor([(len(context) - 1) % len(PROMPTS) for context in contexts])
                return torch.nn.functional.one_hot(turns, len(PROMPTS)).float()

        loaded = LoadedModel(self.model, None)
        if not prompted:
            return RepairedModel(loaded)
        return RepairedModel(loaded, PromptBank(self.prompts, ["short", "long"]), ByTurns())

    def scoring(self, prompted: bool) -> float:
        """Rows packed into one pass, with branches, alone and behind a text that all share, against each one alone."""
        import torch

        from idp.evaluate.batching import Request, make_row
        from idp.evaluate.engine import LocalEngine

        pairs = []
        for shared in (self.tokens(0), self.tokens(SHARED)):
            rows, unpacked = [], []
            for number, (trunk, branches) in enumerate(ROWS):
                begin = self.tokens(trunk)
                whole = [torch.cat([begin, self.tokens(size)]) for size in branches]
                requests = [Request(tokens[:1].tolist(), tokens[1:].tolist()) for tokens in whole]
                rows.append(make_row(requests, range(len(requests)), [0] * (number + 1 + (len(shared) % 2))))
                unpacked += [(tokens, number % len(PROMPTS) if prompted else None) for tokens in whole]
            with torch.inference_mode():
                found = LocalEngine(self.repaired(prompted)).score_batch(rows, shared.tolist())["values"]
                expected = []
                for tokens, prompt in unpacked:
                    logits = self.plain(torch.cat([shared, tokens])[:-1], prompt)[len(shared) :]
                    expected.append(logits.log_softmax(-1).gather(1, tokens[1:, None])[:, 0])
            pairs.append((torch.tensor(found), torch.cat(expected)))
        return _apart(pairs)

    def generating(self, prompted: bool) -> float:
        """Contexts padded into one batch, then token after token, against the whole of each row alone."""
        import torch

        from idp.evaluate.generation import prefill, step

        contexts = [self.tokens(length) for length in (6, 70, 46, 17)]
        next_tokens = torch.stack([self.tokens(STEPS) for _ in contexts])
        width, pairs = max(map(len, contexts)), []
        tokens = torch.zeros(len(contexts), width, dtype=torch.long)
        real = torch.zeros(len(contexts), width, dtype=torch.bool)
        for row, context in enumerate(contexts):
            tokens[row, width - len(context) :], real[row, width - len(context) :] = context, True
        with torch.inference_mode():
            repaired = self.repaired(prompted)
            choice = torch.arange(len(contexts)) % len(PROMPTS) if prompted else None
            state = prefill(repaired, tokens, real, choice)
            logits = [state.logits]
            for number in range(STEPS):
                step(repaired, state, next_tokens[:, number])
                logits.append(state.logits)
            for row, context in enumerate(contexts):
                for number, found in enumerate(logits):  # each length anew: what a row is computed as may hang on it
                    whole = torch.cat([context, next_tokens[row, :number]])
                    expected = self.plain(whole, None if choice is None else int(choice[row]))
                    pairs.append((found[row], expected[-1]))
        return _apart(pairs)

    def training(self) -> float:
        """The gradient that a prompt gets through its keys and values, against that through the whole row."""
        import torch

        from idp.prompting.prefix import behind

        batch, apart = torch.stack([self.tokens(40), self.tokens(40)]), 0.0
        embedded = self.model.get_input_embeddings()(batch)
        weights = torch.randn(*batch.shape, self.vocabulary, generator=self.generator)
        for prompt in self.prompts:
            gradients = []
            for way in ("behind", "whole"):
                leaf = prompt.clone().requires_grad_(True)
                if way == "behind":
                    logits = self.model(**behind(self.model, leaf, batch)).logits
                else:
                    whole = torch.cat([leaf.expand(len(batch), -1, -1), embedded], dim=1)
                    logits = self.model(inputs_embeds=whole).logits[:, len(prompt) :]
                (logits[..., : self.vocabulary] * weights).sum().backward()
                gradients.append(leaf.grad)
            apart = max(apart, _apart([(gradients[0], gradients[1])]))
        return apart


def _apart(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """The largest difference between pairs, in units of the second ones' standard deviation.

    Raises:
        UserError: the model's own logits are not finite or all the same: nothing can be told from them.
    """
    import torch

    expected = torch.cat([right.flatten() for _, right in pairs]).double()
    found = torch.cat([left.flatten() for left, _ in pairs]).double()
    spread = float(expected.std())
    if not bool(torch.isfinite(expected).all()) or spread == 0:
        raise UserError("with random weights its own outputs are not finite, or all the same")
    worst = float((found - expected).abs().max()) / spread
    return worst if worst == worst else float("inf")


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"[:200]
