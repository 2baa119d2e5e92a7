"""A linear router on the mean input embedding, trained on held-out text toward the prompts' losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idp import config
from idp.config import option
from idp.prompting.embedding import mean_embeddings
from idp.prompting.selectors.base import Selector

if TYPE_CHECKING:
    import torch

STEPS = 200  # of L-BFGS


@dataclass
class LearnedSelector(config.Selector):
    objective: str = option(
        "expected: the least expected loss; best: cross-entropy to each block's best prompt",
        choices=("expected", "best"),
    )
    penalty: float = option("weight of half the squared norm of the router's weights", minimum=0.0, maximum=1e6)

    @property
    def fits(self) -> bool:
        return True

    @property
    def reads_layers(self) -> int:
        return 0

    def build(self) -> Learned:
        return Learned(self.objective, self.penalty)


class Learned(Selector):
    """`s(x) = W e(x) + b`, with e the mean input embedding; p = softmax(s).

    `fit` minimises, over held-out blocks, the mean of `sum_i p_i(x) L_i` (`expected`) or of `-log p_best(x)` (`best`),
    plus penalty / 2 times the squared norm of the weights. Embeddings are standardised and divided by the root of
    their size, and losses by their deviation between a block's prompts, so that one penalty suits any model; both are
    folded into W and b afterwards. It starts at zero and takes whole-batch steps in float64: nothing is random.

    Args:
        objective: `expected` or `best`.
        penalty: weight of the squared norm.
    """

    def __init__(self, objective: str = "expected", penalty: float = 0.01):
        self.objective, self.penalty = objective, penalty

    def fit(self, contexts: Sequence[Sequence[int]], losses: torch.Tensor) -> None:
        import torch

        with torch.inference_mode(False), torch.enable_grad():
            embedded = mean_embeddings(self.model, contexts).double().cpu().clone()
            losses = losses.double().cpu().clone()
            centre, deviation = embedded.mean(0), embedded.std(0)
            scale = torch.where(deviation > 0, deviation, torch.inf) * embedded.shape[1] ** 0.5
            features = (embedded - centre) / scale
            relative = losses - losses.mean(1, keepdim=True)
            relative = relative / relative.std().clamp(min=1e-12)
            weight = torch.zeros(losses.shape[1], features.shape[1], dtype=torch.float64, requires_grad=True)
            bias = torch.zeros(losses.shape[1], dtype=torch.float64, requires_grad=True)

            def objective() -> torch.Tensor:
                log_p = (features @ weight.t() + bias).log_softmax(1)
                if self.objective == "best":
                    value = -log_p.gather(1, losses.argmin(1, keepdim=True)).mean()
                else:
                    value = (log_p.exp() * relative).sum(1).mean()
                # Between prompts that differ little everywhere the bias would run off to infinity without a price.
                return value + self.penalty / 2 * (weight.square().sum() + bias.square().sum())

            optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

            def closure() -> torch.Tensor:
                optimizer.zero_grad()
                value = objective()
                value.backward()
                return value

            optimizer.step(closure)
        folded = weight.detach() / scale
        self.restore({"weight": folded, "bias": bias.detach() - folded @ centre})

    def state(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight, "bias": self.bias}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.weight, self.bias = state["weight"].float(), state["bias"].float()

    @property
    def added(self) -> int:
        return self.weight.numel() + self.bias.numel()

    @property
    def trainable(self) -> int:
        return self.added

    def scores(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        embedded = mean_embeddings(self.model, contexts)
        return embedded @ self.weight.t().to(embedded.device) + self.bias.to(embedded.device)
