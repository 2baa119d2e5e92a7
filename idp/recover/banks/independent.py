"""Prompts trained alone, as prompt tuning trains one, each from its own start and on its own order of the text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import config
from idp.models import LoadedModel
from idp.prompting.bank import PromptBank
from idp.recover.prompt import initial, tune
from idp.recover.training import History, Report, named

if TYPE_CHECKING:
    import torch


@dataclass
class IndependentBank(config.Bank):
    def make(self, options: Any, loaded: LoadedModel, text: Any, **common: Any) -> Any:
        return make(options, options.lengths, loaded, [text] * len(options.lengths), **common)


def make(
    options: Any,
    lengths: list[int],
    loaded: LoadedModel,
    texts: list[tuple[torch.Tensor, torch.Tensor]],
    *,
    seed: int,
    checkpoint: Path,
    label: str | None = None,
    report: Report | None = None,
    teacher: LoadedModel | None = None,
) -> tuple[PromptBank, dict[str, History]]:
    """Trains prompt i on `texts[i]`, training and held-out blocks, each [blocks, tokens].

    Args:
        options: initialisation and training, of `Idp` or `PromptTuning`.
        lengths: tokens of each prompt.
        loaded: the frozen model.
        texts: one for each prompt.
        seed: prompt i draws from seed and i.
        checkpoint: a folder that survives a kill; each prompt has its own below it.
        label: what is said beside the progress bar; None: which prompt it is.
        report: called with each step's figures, their names preceded by the prompt's.
        teacher: the dense model, for objective=distill.
    """
    bank, histories = PromptBank([], []), {}
    for number, (length, text) in enumerate(zip(lengths, texts, strict=True)):
        name = f"prompt_{number}"
        own_seed = seed_of(seed, number)
        prompt, histories[name] = tune(
            loaded,
            initial(loaded, length, options.init, options.init_text, own_seed),
            text,
            options.training,
            seed=own_seed,
            checkpoint=checkpoint / name,
            label=label or f"{name} ({number + 1} of {len(lengths)}, {length} tokens)",
            report=named(report, name),
            teacher=teacher,
        )
        bank.prompts.append(prompt)
        bank.names.append(name_of(number, length))
    return bank, histories


def seed_of(seed: int, number: int) -> int:
    """What prompt `number` draws its start and its order of blocks from."""
    return seed + 1000 * number


def name_of(number: int, length: int) -> str:
    """What a trained prompt is called in its bank."""
    return f"prompt_{number}_{length}_tokens"
