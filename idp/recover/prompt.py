"""Prompt tuning (Lester et al., 2104.08691) on a frozen compressed model, as Xu et al. (2305.11186) repair it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.config import Training
from idp.errors import UserError
from idp.models import LoadedModel
from idp.prompting.prefix import attention_mask, cache_of, run_prompt
from idp.recover.training import History, Report, next_token_loss, train

if TYPE_CHECKING:
    import torch


def tune(
    loaded: LoadedModel,
    start: torch.Tensor,
    text: tuple[torch.Tensor, torch.Tensor],
    options: Training,
    *,
    seed: int,
    checkpoint: Path,
    label: str,
    report: Report | None = None,
) -> tuple[torch.Tensor, History]:
    """Trains one soft prompt to lower the model's loss on text.

    The prompt is trained in float32 and enters the model in its dtype. Its keys and values are computed once per
    step and shared by the whole batch.

    Args:
        loaded: the frozen model.
        start: the prompt's first value, [tokens, hidden_size].
        text: training and held-out blocks, each [blocks, tokens].
        options: the training's options.
        seed: draws the order of the blocks.
        checkpoint: a folder that survives a kill.
        label: what is said beside the progress bar.
        report: called with each step's figures.

    Returns:
        the prompt, [tokens, hidden_size] float32 on the CPU, and its history.
    """
    import torch

    model, device = loaded.model, loaded.device
    prompt = torch.nn.Parameter(start.detach().clone().float().to(device))
    length = len(prompt)

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        batch = batch.to(device)
        rows, width = batch.shape
        shared = [(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in run_prompt(model, prompt)]
        positions = torch.arange(length + width, device=device)[None]
        visible = torch.ones(width, length + width, dtype=torch.bool, device=device).tril(length)
        logits = model(
            input_ids=batch,
            attention_mask=attention_mask(model, visible[None], positions[:, length:], positions),
            position_ids=positions[:, length:].expand(rows, -1),
            past_key_values=cache_of(shared),
            use_cache=True,
        ).logits
        return next_token_loss(logits, batch)

    history = train(
        {"prompt": prompt}, loss_of, *text, options, seed=seed, checkpoint=checkpoint, label=label, report=report
    )
    return prompt.detach().cpu(), history


def initial(loaded: LoadedModel, length: int, init: str, init_text: str, seed: int) -> torch.Tensor:
    """A prompt's first value, [length, hidden_size].

    Args:
        loaded: the model, whose embedding it is drawn from.
        length: tokens.
        init: `vocabulary` (random rows of the embedding), `first_rows` (rows 0..n-1, as in Xu et al.'s code), `text`
            (the tokens of `init_text`, repeated) or `random` (Gaussian with the embedding's mean and deviation).
        init_text: the text for `text`.
        seed: for `vocabulary` and `random`.

    Raises:
        UserError: the text has no tokens, or the vocabulary fewer rows than the prompt.
    """
    import torch

    weight = loaded.model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(seed)
    if init == "random":
        sample = weight.detach().float().cpu()
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
    import torch

    embeddings: Any = loaded.model.get_input_embeddings()
    with torch.no_grad():
        return embeddings(torch.tensor(tokens, device=loaded.device)).float().cpu()
