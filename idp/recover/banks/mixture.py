"""Prompts trained to be mixed: each block of text behind the mean of all prompts, weighed by how near it is to each.

    w_i(x) = softmax_i(-||e(x) - c_i||^2 / (temperature * D)),   keys and values = sum_i w_i * those of prompt i

e is the mean input embedding of a text's first tokens, c the centres of k-means over the training text, D the mean
squared distance between two centres. These are the weights that `recovery/selector=nearest` gives with the same
`temperature`: what is trained is what is used. Experts of clusters mixed by such weights are those of c-BTM (Gururangan
et al., 2303.14177). All prompts start as one, since what lies between two prompts that were found apart is neither (for
weights: Wortsman et al., 2102.10472).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from idp import config
from idp.beginning import begun
from idp.config import option
from idp.errors import UserError
from idp.prompting.bank import PromptBank
from idp.prompting.embedding import mean_embeddings
from idp.prompting.frequencies import switch_of
from idp.prompting.prefix import behind_states, weighted
from idp.prompting.selectors.nearest import Nearest
from idp.prompting.states import states
from idp.recover.banks.cluster import k_means
from idp.recover.context import RepairContext, RepairResult
from idp.recover.fitting import Loss
from idp.recover.objective import Objective
from idp.recover.training import named, train
from idp.recover.tuning import name_of

if TYPE_CHECKING:
    import torch

    from idp.recover.idp import Idp

NAME = "mixture"


@dataclass
class MixtureBank(config.Bank):
    temperature: float = option(
        "of the weights, in units of the mean squared distance between two centres", minimum=1e-3, maximum=1000.0
    )
    restarts: int = option("starts of k-means, of which the best is kept", minimum=1)
    context_tokens: int = option("tokens at the start of a block that its weights follow from", minimum=1)

    @property
    def shares(self) -> bool:
        return True

    def centred(self, prompts: int, training: config.Training) -> bool:
        return True

    def judged(self, prompts: int) -> int:
        return 1  # each sequence behind its own mixture

    def check(self, recovery: Idp) -> None:
        if len(recovery.lengths) < 2:
            raise UserError(
                f"recovery.lengths={recovery.lengths}: one prompt is no mixture; give two or more of one length, such"
                " as recovery.lengths=[25,25,25], or use recovery/bank=independent"
            )
        if len(set(recovery.lengths)) > 1:
            raise UserError(
                f"recovery.lengths={recovery.lengths}: recovery/bank=mixture takes the mean of prompts, which must be"
                " of one length, such as recovery.lengths=[25,25,25]"
            )

    def make(self, recovery: Idp, context: RepairContext) -> RepairResult:
        """Trains all prompts in one loop, in steps of `batch_size` blocks for each prompt.

        A block's weights follow from its first `context_tokens` tokens, about as many as a selector is shown.
        """
        import torch

        count, length = len(recovery.lengths), recovery.lengths[0]
        weigh = self._fitted(recovery, context)
        start = recovery.start.prompt(context.loaded, length, context.seed).float().to(context.loaded.device)
        parts = [torch.nn.Parameter(start.clone()) for _ in range(count)]
        each = recovery.training.batch_size  # of a pass, whose memory is that of one prompt's training
        rows = recovery.training.micro_batch_size or each
        training = replace(recovery.training, batch_size=each * count, micro_batch_size=rows)
        history = train(
            {f"prompt_{number}": part for number, part in enumerate(parts)},
            self._loss_with(context, recovery, parts, weigh),
            *context.text,
            training,
            seed=context.seed,
            checkpoint=context.checkpoint / NAME,
            label=context.label or f"a mixture of {count} prompts of {length} tokens",
            report=named(context.report, NAME),
        )
        bank = PromptBank([part.detach().cpu() for part in parts], [name_of(n, length) for n in range(count)])
        bank.centres = weigh.centres
        bank.made = {"kind": NAME, "temperature": self.temperature}
        return RepairResult(bank, bank.parameters, histories={NAME: history})

    def _fitted(self, recovery: Idp, context: RepairContext) -> Nearest:
        """The selector whose weights the prompts are trained for, with its centres."""
        blocks, count = context.text[0], len(recovery.lengths)
        if len(blocks) < count:
            raise UserError(
                f"recovery/bank=mixture: {len(blocks)} training blocks cannot make {count} clusters; use a larger"
                " corpus, more recovery.training.steps, or fewer recovery.lengths"
            )
        found = Nearest()
        found.model, found.temperature = context.loaded.model, self.temperature
        embedded = mean_embeddings(context.loaded.model, self._shown(context, blocks)).cpu()
        found.restore({"centres": k_means(embedded, count, self.restarts, context.seed)[1]})
        return found

    def _shown(self, context: RepairContext, blocks: torch.Tensor) -> list[list[int]]:
        """Token ids of what a selector is shown of each block, [blocks, tokens]."""
        return begun(blocks[:, : self.context_tokens].cpu(), context.beginning.ahead_of_text).tolist()

    def _loss_with(
        self, context: RepairContext, recovery: Idp, prompts: list[torch.nn.Parameter], weigh: Nearest
    ) -> Loss:
        """The loss of a batch, [blocks, tokens], each block behind its own mixture of the prompts."""
        import torch

        loaded, beginning = context.loaded, context.beginning
        objective = Objective(recovery.training, loaded, context.teacher)
        ahead, switch = beginning.ahead_of_prompt, switch_of(loaded.model.config)

        def loss_of(batch: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                scores = weigh.scores(self._shown(context, batch))
                weights = (scores / (weigh.unit * self.temperature)).softmax(1)
            batch = batch.to(loaded.device)
            text = begun(batch, beginning.ahead_of_text)
            long = None if switch is None else len(ahead) + len(prompts[0]) + text.shape[1] > switch
            with objective.saving.recomputing(keep_cache=True):
                made = [states(loaded.model, "prompt", prompt, ahead, long) for prompt in prompts]
            mixed = [
                tuple(weighted(torch.cat(tensors), weights) for tensors in zip(*layer, strict=True))
                for layer in zip(*made, strict=True)
            ]
            return objective(loaded.model, batch, behind_states(loaded.model, mixed, text))

        return Loss(loss_of, objective.saving.spare)
