"""IDP (Hoang et al., 2310.00867): a bank of soft prompts, of which one is chosen for each input.

How the prompts come to differ is the bank's kind; the choice among them is made at inference by a selector, and the
attention selector adds no parameter.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from idp import config
from idp.models import LoadedModel
from idp.prompting.bank import PromptBank
from idp.recover.banks import cluster, independent, specialists
from idp.recover.training import History, Report

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
        options: lengths, initialisation, training, and for IDP how the prompts come to differ.
        loaded: the frozen model.
        text: training and held-out blocks, each [blocks, tokens].
        seed: everything random draws from it.
        checkpoint: a folder that survives a kill.
        label: what is said beside the progress bar; None: which prompt it is.
        report: called with each step's figures.
        teacher: the dense model, for objective=distill; not for specialists.
    """
    common = {"seed": seed, "checkpoint": checkpoint, "label": label, "report": report}
    if isinstance(options, config.Idp) and isinstance(options.bank, config.SpecialistsBank):
        return specialists.make(options, loaded, text, **common)
    common["teacher"] = teacher
    if isinstance(options, config.Idp) and isinstance(options.bank, config.ClusterBank):
        return cluster.make(options, loaded, text, **common)
    return independent.make(options, loaded, [text] * len(independent.lengths_of(options)), **common)


def share(options: config.Recovery) -> int:
    """How many times the text of one prompt's training a bank reads: prompts trained on different text share it out."""
    apart = isinstance(options, config.Idp) and isinstance(options.bank, config.ClusterBank | config.SpecialistsBank)
    return len(options.lengths) if apart else 1
