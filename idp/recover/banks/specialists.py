"""Prompts trained together as specialists: each block of text updates the prompt under which it is likeliest.

This is expectation-maximisation for a mixture of prompts. E-step, without gradients: c_bi, the loss in nats per token
of block b behind prompt i. M-step: lower sum_bi r_bi c_bi / B, where r is

    hard          r_bi = 1 for the prompt that b is assigned to, which minimises sum_bi r_bi c_bi
    soft          r_bi = softmax_i(-c_bi / temperature)
    balanced      in both cases sum_b r_bi = B / m: a balanced linear assignment, or the same with entropy (Sinkhorn)

Without balance one prompt soon takes all: whichever is a little better gets all blocks and so becomes better still.
Equal shares per batch are those of SwAV (Caron et al., 2006.09882).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from idp import config
from idp.beginning import Beginning, begun
from idp.config import option
from idp.errors import UserError
from idp.models import LoadedModel
from idp.prompting.bank import PromptBank
from idp.recover.banks.cluster import centres
from idp.recover.context import RepairContext, RepairResult
from idp.recover.fitting import Loss
from idp.recover.saving import Saving
from idp.recover.training import named, train
from idp.recover.tuning import behind, name_of, seed_of

if TYPE_CHECKING:
    import torch

    from idp.recover.idp import Idp

NAME = "specialists"
SINKHORN_STEPS, SINKHORN_TOLERANCE = 1000, 1e-3  # at low temperatures it takes hundreds
LAST_BATCHES = 32  # training blocks from which the centres are taken, in batches


@dataclass
class SpecialistsBank(config.Bank):
    mixture: str = option(
        "hard: a block updates the prompt that it is assigned to; soft: all prompts, by their responsibilities",
        choices=("hard", "soft"),
    )
    balanced: bool = option("every prompt gets an equal share of each batch; without it one prompt tends to take all")
    temperature: float = option(
        "mixture=soft: of the responsibilities, in nats per token", minimum=1e-4, maximum=1000.0
    )
    diversity: float = option(
        "weight of the mean cosine similarity of two prompts in the loss", minimum=0.0, maximum=1000.0
    )

    @property
    def shares(self) -> bool:
        return True

    def centred(self, prompts: int, training: config.Training) -> bool:
        return min(LAST_BATCHES, training.steps) * training.batch_size >= 1  # a block for each prompt

    def also_read(self, prompts: int, training: config.Training) -> int:
        batch = training.batch_size * prompts
        last = min(LAST_BATCHES, training.steps) * batch + training.heldout_sequences  # assigned at the end
        return (training.steps * batch + last) * prompts  # each sequence behind each prompt, to find its own

    def check(self, recovery: Idp) -> None:
        if recovery.training.objective != "lm":
            raise UserError(
                f"recovery.training.objective={recovery.training.objective}: specialists divide text among them by how"
                " likely it is; use recovery.training.objective=lm or another recovery/bank"
            )

    def make(self, recovery: Idp, context: RepairContext) -> RepairResult:
        """Trains all prompts in one loop.

        A step reads `batch_size` blocks for each prompt, so that every prompt sees as much text as one trained alone.
        On held-out text, where the best state is chosen, each block is free to take its best prompt.
        """
        import torch

        loaded, lengths, training = context.loaded, recovery.lengths, recovery.training
        count = len(lengths)
        starts = [
            recovery.start.prompt(loaded, length, seed_of(context.seed, number))
            for number, length in enumerate(lengths)
        ]
        parts = [torch.nn.Parameter(start.float().to(loaded.device)) for start in starts]
        together = replace(training, batch_size=training.batch_size * count)
        history = train(
            {f"prompt_{number}": part for number, part in enumerate(parts)},
            self._loss_with(loaded, parts, training, context.beginning),
            *context.text,
            together,
            seed=context.seed,
            checkpoint=context.checkpoint / NAME,
            label=context.label or f"{count} specialists of {', '.join(map(str, lengths))} tokens",
            report=named(context.report, NAME),
        )
        bank = PromptBank(
            [part.detach().cpu() for part in parts], [name_of(number, length) for number, length in enumerate(lengths)]
        )
        with torch.no_grad():
            chosen = losses(loaded, parts, context.text[1], training.batch_size, context.beginning).argmin(1)
            last = context.text[0][: LAST_BATCHES * together.batch_size]
            owners = assign(losses(loaded, parts, last, training.batch_size, context.beginning)).cpu()
        bank.made = {"kind": NAME, "heldout_choices": chosen.bincount(minlength=count).tolist()}
        if len(last) >= count:
            texts = begun(last, context.beginning.ahead_of_text)
            bank.centres = centres(loaded, [texts[owners == number] for number in range(count)])
        return RepairResult(bank, bank.parameters, histories={NAME: history})

    def _loss_with(
        self,
        loaded: LoadedModel,
        prompts: list[torch.nn.Parameter],
        training: config.Training,
        beginning: Beginning | None = None,
    ) -> Loss:
        """The loss of a batch, [blocks, tokens]; a pass of the E-step reads as many blocks as one prompt has of it."""
        import torch

        saving = Saving(training, loaded.model)

        def shares(batch: torch.Tensor, rows: int) -> torch.Tensor:
            with torch.no_grad():
                costs = losses(loaded, prompts, batch, rows, beginning, saving)
            return responsibilities(costs, self)

        def owned(batch: torch.Tensor, shares: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
            for number, share in enumerate(shares.unbind(1)):
                if len(indices := share.nonzero().flatten()):
                    yield number, indices

        def weighed(batch: torch.Tensor, shares: torch.Tensor, number: int, indices: torch.Tensor) -> torch.Tensor:
            prompt_losses = row_losses(loaded, prompts[number], batch[indices], beginning, saving)
            return (shares[indices, number] * prompt_losses).sum() / len(batch)

        def loss_of(batch: torch.Tensor) -> torch.Tensor:
            batch = batch.to(loaded.device)
            if not torch.is_grad_enabled():
                costs = losses(loaded, prompts, batch, training.batch_size, beginning, saving)
                return (responsibilities(costs, self, free=True) * costs).sum(1).mean()
            found, loss = shares(batch, training.batch_size), torch.zeros((), device=loaded.device)
            for number, indices in owned(batch, found):
                loss = loss + weighed(batch, found, number, indices)
            return loss + self.diversity * similarity(prompts) if self.diversity else loss

        def split(batch: torch.Tensor, rows: int) -> Iterator[torch.Tensor]:
            batch = batch.to(loaded.device)
            found = shares(batch, min(rows, training.batch_size))
            for number, indices in owned(batch, found):
                for part in indices.split(rows):
                    yield weighed(batch, found, number, part)
            if self.diversity:
                yield self.diversity * similarity(prompts)

        return Loss(loss_of, saving.spare, split)


def losses(
    loaded: LoadedModel,
    prompts: list[torch.Tensor],
    blocks: torch.Tensor,
    rows: int | None = None,
    beginning: Beginning | None = None,
    saving: Saving | None = None,
) -> torch.Tensor:
    """Loss in nats per token of each block behind each prompt, [blocks, prompts].

    Args:
        loaded: the frozen model.
        prompts: each [tokens, hidden_size].
        blocks: token ids, [blocks, tokens].
        rows: blocks per forward pass; None: all.
        beginning: the BOS and its place about the prompts; None: the model's, as each block's first token.
        saving: how the passes are run.
    """
    import torch

    parts = [part.to(loaded.device) for part in blocks.split(rows or len(blocks))]
    found = [torch.cat([row_losses(loaded, prompt, part, beginning, saving) for part in parts]) for prompt in prompts]
    return torch.stack(found, dim=1)


def row_losses(
    loaded: LoadedModel,
    prompt: torch.Tensor,
    batch: torch.Tensor,
    beginning: Beginning | None = None,
    saving: Saving | None = None,
) -> torch.Tensor:
    """Loss in nats per token of each block [blocks, tokens] behind one prompt [tokens, hidden_size]: [blocks].

    `saving` says how the passes are run.
    """
    from torch.nn.functional import cross_entropy

    from idp.prompting.repaired import hidden_at_head
    from idp.recover.nets.attention import unmasked
    from idp.recover.nets.head_loss import place_losses

    model, targets, width = loaded.model, batch[:, 1:].flatten(), batch.shape[1]
    saving = saving or Saving(None, model)
    with saving.recomputing(keep_cache=True):
        inputs = behind(model, prompt, batch, beginning=beginning or Beginning(loaded.bos))
    if saving.bare_on_card:
        with saving.forward():
            hidden = hidden_at_head(model, unmasked(model, inputs))
        hidden = hidden.view(len(batch), -1, hidden.shape[-1])[:, -width:-1].flatten(0, 1)
        each = place_losses(hidden, model.get_output_embeddings(), targets)
    else:
        with saving.recomputing():
            logits = model(**inputs).logits[:, -width:-1]
        each = cross_entropy(logits.flatten(0, 1).float(), targets.to(logits.device), reduction="none")
    return each.view(len(batch), -1).mean(1).to(batch.device)


def responsibilities(costs: torch.Tensor, options: SpecialistsBank, free: bool = False) -> torch.Tensor:
    """How much of each block each prompt answers for, [blocks, prompts], rows summing to 1.

    Args:
        costs: nats per token, [blocks, prompts].
        options: hard or soft, balanced or not.
        free: not balanced, whatever the options say: for text that is not trained on.
    """
    import torch

    balanced = options.balanced and not free
    if options.mixture == "hard":
        owners = assign(costs) if balanced else costs.argmin(1)
        return torch.nn.functional.one_hot(owners, costs.shape[1]).to(costs.dtype)
    logits = -costs.double() / options.temperature
    if balanced:
        logits = _sinkhorn(logits)
    return logits.softmax(1).to(costs.dtype)


def assign(costs: torch.Tensor) -> torch.Tensor:
    """The prompt of each block, [blocks], at the least total cost with which all prompts get equal shares.

    Of B blocks every one of m prompts gets floor(B / m), and B mod m of them one more.

    Args:
        costs: [blocks, prompts], finite.
    """
    import numpy
    import torch
    from scipy.optimize import linear_sum_assignment

    blocks, prompts = costs.shape
    values = numpy.nan_to_num(costs.detach().double().cpu().numpy(), nan=1e6, posinf=1e6)
    share, over = divmod(blocks, prompts)
    # A place for each block that a prompt must get, and one that it may: those left empty go to rows of no block.
    must, may = numpy.repeat(values, share, axis=1), values
    nobody = prompts - over if over else 0
    table = numpy.concatenate([must, may], axis=1) if over else must
    if nobody:
        forbidden = (numpy.abs(values).max() + 1.0) * (blocks + 1)
        rows = numpy.concatenate(
            [numpy.full((nobody, must.shape[1]), forbidden), numpy.zeros((nobody, prompts))], axis=1
        )
        table = numpy.concatenate([table, rows])
    places = linear_sum_assignment(table)[1][:blocks]
    owner = numpy.concatenate([numpy.repeat(numpy.arange(prompts), share), numpy.arange(prompts)])
    return torch.from_numpy(owner[places]).to(costs.device)


def similarity(prompts: list[torch.Tensor]) -> torch.Tensor:
    """Mean over all pairs of the cosine similarity of two prompts' mean tokens; a prompt is [tokens, hidden_size]."""
    import torch

    means = torch.stack([torch.nn.functional.normalize(prompt.mean(0), dim=0) for prompt in prompts])
    above = torch.triu_indices(len(prompts), len(prompts), offset=1)
    return (means @ means.T)[above[0], above[1]].mean() if above.shape[1] else means.sum() * 0.0


def _sinkhorn(logits: torch.Tensor) -> torch.Tensor:
    """Logits [blocks, prompts] shifted per prompt so that their softmax over prompts gives every one an equal share."""
    share = len(logits) / logits.shape[1]
    for _ in range(SINKHORN_STEPS):
        logits = logits.log_softmax(1)
        given = logits.logsumexp(0, keepdim=True)
        if ((given.exp() - share).abs() < SINKHORN_TOLERANCE * share).all():
            break
        logits = logits - given + math.log(share)
    return logits
