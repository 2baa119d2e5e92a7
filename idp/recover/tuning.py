"""Training soft prompts and prefixes on a frozen model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from idp.beginning import Beginning
from idp.config import Training
from idp.models import LoadedModel
from idp.prompting.bank import PromptBank
from idp.prompting.prefix import behind
from idp.recover import prompt_states
from idp.recover.context import RepairContext, RepairResult, train_in
from idp.recover.fitting import Loss
from idp.recover.initial import Start
from idp.recover.objective import Objective
from idp.recover.prompt_states import Standing
from idp.recover.training import History

if TYPE_CHECKING:
    import torch
    from torch import nn

    from idp.recover.context import Teacher


class Startable(Standing, Protocol):
    """Options of a recovery that say how a prompt starts and is trained."""

    training: Training

    @property
    def start(self) -> Start: ...


class OnePrompt(Protocol):
    """Options of a recovery that trains one prompt or prefix."""

    kind: str
    length: int
    training: Training


def tune_each(
    options: Startable, lengths: list[int], texts: list[tuple[torch.Tensor, torch.Tensor]], context: RepairContext
) -> RepairResult:
    """Trains prompt i on `texts[i]`, training and held-out blocks, each [blocks, tokens].

    Args:
        options: initialisation and training.
        lengths: tokens of each prompt.
        texts: one for each prompt, in place of the work's own.
        work: all else; prompt i draws from its seed and i, has a checkpoint and reports under a name of its own.
    """
    from idp.recover.nets.reparameterization import Itself

    source = prompt_states.source(options, context)
    bank, histories, trainable = PromptBank([], []), {}, 0
    for number, (length, text) in enumerate(zip(lengths, texts, strict=True)):
        name = f"prompt_{number}"
        prompt_context = replace(
            context.named(name, f"{name} ({number + 1} of {len(lengths)}, {length} tokens)"),
            text=text,
            seed=seed_of(context.seed, number),
        )
        start = options.start.prompt(source, length, prompt_context.seed, prompt_context.beginning_of_text)
        maker, bank.kind = prompt_states.standing(Itself(start), options, source, context)
        prompt, histories[name] = tune(prompt_context, maker, options.training, bank.kind)
        bank.prompts.append(prompt)
        bank.names.append(name_of(number, length))
        trainable += sum(parameter.numel() for parameter in maker.parameters())
    return RepairResult(bank, trainable, histories=histories)


def seed_of(seed: int, number: int) -> int:
    """What prompt `number` draws its start and its order of blocks from."""
    return seed + 1000 * number


def name_of(number: int, length: int) -> str:
    """What a trained prompt is called in its bank."""
    return f"prompt_{number}_{length}_tokens"


def make_with(encoder: nn.Module, options: OnePrompt, context: RepairContext, kind: str) -> RepairResult:
    """A prompt or prefix that an encoder makes while it is trained, and that alone is kept; `kind` as in `PromptBank`.

    Its name in the bank is that of the recovery and its length.
    """
    prompt_context = context.named("prompt_0", f"{options.kind} of {options.length} tokens")
    prompt, history = tune(prompt_context, encoder, options.training, kind)
    bank = PromptBank([prompt], [f"{options.kind}_{options.length}_tokens"], kind)
    return RepairResult(
        bank, sum(parameter.numel() for parameter in encoder.parameters()), histories={"prompt_0": history}
    )


def tune(
    context: RepairContext, start: torch.Tensor | nn.Module, options: Training, kind: str = "prompt"
) -> tuple[torch.Tensor, History]:
    """Trains one soft prompt, or one prefix, to lower the model's loss on text.

    It is trained in float32 and enters the model in its dtype. Its keys and values are computed once per step and
    shared by the whole batch.

    Args:
        work: the frozen model, the text, the BOS and its place, and the teacher for objective=distill; its seed draws
            the order of the blocks, and its checkpoint is this training's alone.
        start: the first value, [tokens, width], or a module that makes the prompt out of its own parameters.
        options: the training's options.
        kind: `prompt` or `prefix`: what a row is, as in `PromptBank`.

    Returns:
        the prompt, [tokens, width] float32 on the CPU, folded where a module made it, and its history.
    """
    import torch

    from idp.recover.nets.reparameterization import Itself

    maker = (Itself(start) if isinstance(start, torch.Tensor) else start).to(context.loaded.device)
    loss = loss_with(context.loaded, maker, kind, options, context.teacher, context.beginning)
    history = train_in(context, dict(maker.named_parameters()), loss, options)
    with torch.no_grad():
        return maker().detach().clone().cpu(), history


def loss_with(
    loaded: LoadedModel,
    maker: nn.Module,
    kind: str,
    options: Training,
    teacher: Teacher | None,
    beginning: Beginning | None = None,
) -> Loss:
    """The loss of a batch, [rows, tokens], behind the prompt that `maker` makes; `kind` is as in `PromptBank`."""
    model, device = loaded.model, loaded.device
    beginning = beginning or Beginning(loaded.bos)
    objective = Objective(options, loaded, teacher)

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        batch = batch.to(device)
        with objective.saving.recomputing(keep_cache=True):  # the prompt's own pass, whose keys and values are read
            inputs = behind(model, maker(), batch, kind, beginning)
        return objective(model, batch, inputs)

    return Loss(loss_of, objective.saving.spare)
