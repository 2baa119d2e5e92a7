"""IDP (Hoang et al., 2310.00867): a bank of soft prompts, of which one is chosen for each input.

Each prompt is trained alone, as prompt tuning does, from its own start and on its own order of the text; the choice
among them is made at inference by a selector and adds no parameter.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from idp import config
from idp.models import LoadedModel
from idp.prompting.bank import PromptBank
from idp.recover.prompt import initial, tune
from idp.recover.training import History, Report, named

if TYPE_CHECKING:
    import torch


def make(
    options: config.Idp | config.PromptTuning,
    loaded: LoadedModel,
    text: tuple[torch.Tensor, torch.Tensor],
    *,
    seed: int,
    checkpoint: Path,
    label: str | None = None,
    report: Report | None = None,
    teacher: LoadedModel | None = None,
) -> tuple[PromptBank, dict[str, History]]:
    """Trains the bank: for IDP one prompt per length, for prompt tuning the one.

    Args:
        options: lengths, initialisation and training.
        loaded: the frozen model.
        text: training and held-out blocks, each [blocks, tokens].
        seed: prompt i draws from seed and i.
        checkpoint: a folder that survives a kill; each prompt has its own below it.
        label: what is said beside the progress bar; None: which prompt it is.
        report: called with each step's figures, their names preceded by the prompt's.
        teacher: the dense model, for objective=distill.
    """
    lengths = options.lengths if isinstance(options, config.Idp) else [options.length]
    bank, histories = PromptBank([], []), {}
    for number, length in enumerate(lengths):
        name = f"prompt_{number}"
        own_seed = seed + 1000 * number
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
        bank.names.append(f"{name}_{length}_tokens")
    return bank, histories
