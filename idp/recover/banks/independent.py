"""Prompts trained alone, as prompt tuning trains one, each from its own start and on its own order of the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from idp import config
from idp.prompting.bank import PromptBank
from idp.recover.prompt import PromptTuning, initial, tune
from idp.recover.training import named
from idp.recover.work import Made, Work

if TYPE_CHECKING:
    import torch

    from idp.recover.idp import Idp


@dataclass
class IndependentBank(config.Bank):
    def make(self, recovery: Idp, work: Work) -> Made:
        return make(recovery, recovery.lengths, [work.text] * len(recovery.lengths), work)


def make(
    options: Idp | PromptTuning, lengths: list[int], texts: list[tuple[torch.Tensor, torch.Tensor]], work: Work
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
