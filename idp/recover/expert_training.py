"""Low-rank experts trained, each from its closed form on the training text that falls to its cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idp.config import Training
from idp.prompting.experts import Update
from idp.recover.context import RepairContext, train_in
from idp.recover.objective import text_loss
from idp.recover.training import History

if TYPE_CHECKING:
    from collections.abc import Mapping


def tune(context: RepairContext, updates: Mapping[str, Update], options: Training) -> tuple[dict[str, Update], History]:
    """Trains one expert by the project's one loop, on the context's text.

    Args:
        context: the model, which carries no adapter afterwards; text, seed and checkpoint are this training's alone.
        updates: what it starts from, by the name of each layer, all of one rank.
        options: the training's.

    Returns:
        the updates at the best held-out loss, float32 on the CPU, and the history.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    loaded, rank = context.loaded, len(next(iter(updates.values()))[0])
    adapted = get_peft_model(
        loaded.model, LoraConfig(r=rank, lora_alpha=rank, target_modules=list(updates), task_type="CAUSAL_LM")
    )
    sides = {name: [side["default"] for side in _sides(loaded.model.get_submodule(name))] for name in updates}
    try:
        for name, pair in updates.items():
            for side, matrix in zip(sides[name], pair, strict=True):
                side.weight = torch.nn.Parameter(matrix.to(loaded.device, torch.float32))
        parameters = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
        loss = text_loss(loaded, options, context.teacher, adapted)
        history = train_in(context, parameters, loss, options)
        a, b = ({name: pair[side].weight.detach().cpu().clone() for name, pair in sides.items()} for side in (0, 1))
        return {name: (a[name], b[name]) for name in updates}, history
    finally:
        adapted.unload().eval()


def _sides(layer: object) -> tuple:
    return layer.lora_A, layer.lora_B  # type: ignore[attr-defined]  # PEFT's layer
