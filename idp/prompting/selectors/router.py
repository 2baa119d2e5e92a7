"""A linear router on the mean input embedding, trained on how right each prompt is on documents of other tasks.

Routers by the outcomes of benchmarks: Shnitzer et al., 2309.15789; by preferences between answers: RouteLLM, Ong et
al., 2406.18665. Both choose among models; here it is among the prompts of a bank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional

from idp import config
from idp.config import OUTCOMES, WEIGHTS, option
from idp.errors import UserError
from idp.prompting.selectors.learned import Learned


@dataclass
class RouterSelector(config.Selector):
    tasks: list[str] = option("tasks with choices on whose documents it is trained; none of them may be evaluated")
    documents: Optional[int] = option("documents of each of them, evenly spaced; null: all", minimum=2)
    objective: str = option(
        "expected: the greatest expected probability of the right choice; best: cross-entropy to each document's best"
        " prompt",
        choices=("expected", "best"),
    )
    penalty: float = option("weight of half the squared norm of the router's weights", minimum=0.0, maximum=1e6)

    @property
    def fits(self) -> bool:
        return True

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({OUTCOMES, WEIGHTS})

    def router_tasks(self, task: config.Task) -> config.Task:
        asked = replace(task, names=list(self.tasks), documents=self.documents)
        return replace(asked, documents_of={}, fewshot_of={}, groups={}, open_book={})  # those are of the run's own

    def check(self) -> None:
        if not self.tasks:
            raise UserError(
                "recovery.selector.tasks is empty: name tasks with choices that are not evaluated, such as"
                " recovery.selector.tasks=[openbookqa]"
            )

    @property
    def reads_layers(self) -> int:
        return 0

    def build(self) -> Learned:
        return Learned(self.objective, self.penalty)
