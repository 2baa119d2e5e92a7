"""Training soft prompts and prefixes on a frozen model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from idp.beginning import Beginning
from idp.config import Training
from idp.errors import UserError
from idp.models import LoadedModel
from idp.prompting.bank import PromptBank
from idp.prompting.prefix import behind, embedded
from idp.recover.fitting import Loss
from idp.recover.objective import Objective
from idp.recover.training import History, Report, named, train
from idp.recover.work import Made, Work

if TYPE_CHECKING:
    import torch
    from torch import nn


class Startable(Protocol):
    """Options of a recovery that say how a prompt starts and is trained."""

    init: str
    init_text: str
    training: Training


class OnePrompt(Protocol):
    """Options of a recovery that trains one prompt or prefix."""

    kind: str
    length: int
    training: Training


def tune_each(
    options: Startable, lengths: list[int], texts: list[tuple[torch.Tensor, torch.Tensor]], work: Work
) -> Made:
    """Trains prompt i on `texts[i]`, training and held-out blocks, each [blocks, tokens].

    Args:
        options: initialisation and training.
        lengths: tokens of each prompt.
        texts: one for each prompt, in place of the work's own.
        work: all else; prompt i draws from its seed and i, has a checkpoint and reports under a name of its own.
    """
    bank, histories = PromptBank([], []), {}
    for number, (length, text) in enumerate(zip(lengths, texts, strict=True)):
        name = f"prompt_{number}"
        seed = seed_of(work.seed, number)
        prompt, histories[name] = tune(
            work.loaded,
            initial(work.loaded, length, options.init, options.init_text, seed),
            text,
            options.training,
            seed=seed,
            checkpoint=work.checkpoint / name,
            label=work.label or f"{name} ({number + 1} of {len(lengths)}, {length} tokens)",
            report=named(work.report, name),
            teacher=work.teacher,
            beginning=work.beginning,
        )
        bank.prompts.append(prompt)
        bank.names.append(name_of(number, length))
    return Made(bank, bank.parameters, histories=histories)


def seed_of(seed: int, number: int) -> int:
    """What prompt `number` draws its start and its order of blocks from."""
    return seed + 1000 * number


def name_of(number: int, length: int) -> str:
    """What a trained prompt is called in its bank."""
    return f"prompt_{number}_{length}_tokens"


def make_with(encoder: nn.Module, options: OnePrompt, work: Work, kind: str) -> Made:
    """A prompt or prefix that an encoder makes while it is trained, and that alone is kept; `kind` as in `PromptBank`.

    Its name in the bank is that of the recovery and its length.
    """
    prompt, history = tune(
        work.loaded,
        encoder,
        work.text,
        options.training,
        checkpoint=work.checkpoint / "prompt_0",
        label=work.label or f"{options.kind} of {options.length} tokens",
        kind=kind,
        seed=work.seed,
        report=named(work.report, "prompt_0"),
        teacher=work.teacher,
        beginning=work.beginning,
    )
    bank = PromptBank([prompt], [f"{options.kind}_{options.length}_tokens"], kind)
    return Made(bank, sum(parameter.numel() for parameter in encoder.parameters()), histories={"prompt_0": history})


def tune(
    loaded: LoadedModel,
    start: torch.Tensor | nn.Module,
    text: tuple[torch.Tensor, torch.Tensor],
    options: Training,
    *,
    seed: int,
    checkpoint: Path,
    label: str,
    kind: str = "prompt",
    report: Report | None = None,
    teacher: LoadedModel | None = None,
    beginning: Beginning | None = None,
) -> tuple[torch.Tensor, History]:
    """Trains one soft prompt, or one prefix, to lower the model's loss on text.

    It is trained in float32 and enters the model in its dtype. Its keys and values are computed once per step and
    shared by the whole batch.

    Args:
        loaded: the frozen model.
        start: the first value, [tokens, width], or a module that makes the prompt out of its own parameters.
        text: training and held-out blocks, each [blocks, tokens].
        options: the training's options.
        seed: draws the order of the blocks.
        checkpoint: a folder that survives a kill.
        label: what is said beside the progress bar.
        kind: `prompt` or `prefix`: what a row is, as in `PromptBank`.
        report: called with each step's figures.
        teacher: the dense model, for objective=distill.
        beginning: the BOS and its place about the prompt; None: the model's, as each text's first token.

    Returns:
        the prompt, [tokens, width] float32 on the CPU, folded where a module made it, and its history.
    """
    import torch

    from idp.recover.nets.reparameterization import Itself

    maker = (Itself(start) if isinstance(start, torch.Tensor) else start).to(loaded.device)
    loss_of = loss_with(loaded, maker, kind, options, teacher, beginning)
    parameters = dict(maker.named_parameters())
    history = train(parameters, loss_of, *text, options, seed=seed, checkpoint=checkpoint, label=label, report=report)
    with torch.no_grad():
        return maker().detach().clone().cpu(), history


def loss_with(
    loaded: LoadedModel,
    maker: nn.Module,
    kind: str,
    options: Training,
    teacher: LoadedModel | None,
    beginning: Beginning | None = None,
) -> Loss:
    """The loss of a batch, [rows, tokens], behind the prompt that `maker` makes; the arguments are those of `tune`."""
    model, device = loaded.model, loaded.device
    beginning = beginning or Beginning(loaded.bos)
    objective = Objective(options, loaded, teacher)

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        batch = batch.to(device)
        with objective.saving.recomputing(keep_cache=True):  # the prompt's own pass, whose keys and values are read
            inputs = behind(model, maker(), batch, kind, beginning)
        return objective(model, batch, inputs)

    return Loss(loss_of, objective.saving.spare)


def initial(loaded: LoadedModel, length: int, init: str, init_text: str, seed: int) -> torch.Tensor:
    """A prompt's first value, [length, hidden_size].

    Args:
        loaded: the model, whose embedding it is drawn from.
        length: tokens.
        init: `vocabulary` (random rows of the embedding), `first_rows` (rows 0..n-1, as in Xu et al.'s code), `text`
            (the tokens of `init_text`, repeated) or `random` (Gaussian with the mean and deviation
            of the embeddings that the model's layers get).
        init_text: the text for `text`.
        seed: for `vocabulary` and `random`.

    Raises:
        UserError: the text has no tokens, or the vocabulary fewer rows than the prompt.
    """
    import torch

    weight = loaded.model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(seed)
    if init == "random":
        sample = embed(loaded, list(range(len(weight))))  # not the table itself: Gemma scales what it looks up
        return sample.mean(0) + sample.std(0) * torch.randn(length, weight.shape[1], generator=generator)
    if init == "text":
        tokens = loaded.tokenizer(init_text, add_special_tokens=False)["input_ids"]
        if not tokens:
            raise UserError("recovery.init_text has no tokens: give some text, or use recovery.init=vocabulary")
        return embed(loaded, (tokens * (length // len(tokens) + 1))[:length])
    if length > len(weight):
        raise UserError(f"recovery: a prompt of {length} tokens is longer than the vocabulary ({len(weight)})")
    rows = range(length) if init == "first_rows" else torch.randperm(len(weight), generator=generator)[:length].tolist()
    return embed(loaded, list(rows))


def embed(loaded: LoadedModel, tokens: list[int]) -> torch.Tensor:
    """Embeddings of tokens as the model's layers get them, [tokens, hidden_size] float32 on the CPU."""
    return embedded(loaded.model, tokens).float().cpu()
