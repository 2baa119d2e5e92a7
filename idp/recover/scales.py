"""The scales of quantised weights are trained, the integers kept (PEQA, 2305.14152; EfficientQAT's second phase,
2407.11062): nothing is added at inference, and an export stays packed.

A weight is `scale * (code - zero_point)`; its scale's gradient is that of the weights of its group times
`code - zero_point`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from idp import config
from idp.config import GRID
from idp.errors import UserError
from idp.models import LoadedModel
from idp.recover import rescaling
from idp.recover.context import RepairContext, RepairResult, train_in
from idp.recover.fitting import Loss
from idp.recover.objective import text_loss
from idp.recover.training import History

if TYPE_CHECKING:
    import torch

    from idp.recover.nets.scaled_linear import ScaledLayer


@dataclass
class Scales(config.Trained):
    part: ClassVar[str] = "scales"
    adapts: ClassVar[bool] = True
    bytes_beside_weights: ClassVar[float] = 1.0  # each weight's code less its zero point

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {GRID}

    def check_model(self, empty: LoadedModel) -> None:
        from idp.compress import experts

        if experts.stacked_experts(empty.model):
            raise UserError(
                f"recovery={self.kind}: {type(empty.model).__name__} is a mixture of experts, whose scales are not"
                " trained here; use another recovery"
            )

    def numbers(self, empty: LoadedModel) -> int:
        from idp.compress import recipe

        if empty.grid is None or empty.grid.bits is None or empty.grid.group_size is None:
            return 0
        size, found = empty.grid.group_size, 0
        for layer in recipe.compressed_layers(empty.model).values():
            rows, columns = layer.weight.shape
            found += rows * (1 if size == -1 else columns // size)
        return found

    def make(self, context: RepairContext) -> RepairResult:
        grids = context.grid()
        layers = quantised(context.loaded, grids)
        history = train_scales(context.named(self.part, "scales"), layers, self.training)
        scales = {name: layer.rescaled(grids[f"{name}.zero_point"]) for name, layer in layers.items()}
        count = sum(layer.change.numel() for layer in layers.values())
        return RepairResult(scales=scales, trainable=count, histories={self.part: history})


def quantised(loaded: LoadedModel, grids: Mapping[str, torch.Tensor]) -> dict[str, ScaledLayer]:
    """Every quantised layer by its name, with its whole numbers.

    Args:
        loaded: the compressed model.
        grids: `<layer>.scale` and `<layer>.zero_point` of each, [rows, groups].

    Raises:
        UserError: a layer's weights do not lie on its grid; it is named.
    """
    from idp.compress import pack
    from idp.recover.nets.scaled_linear import ScaledLayer

    modules, found = dict(loaded.model.named_modules()), {}
    for name in pack.packed_layers(grids):
        weight = modules[name].weight
        before, zero_point = grids[f"{name}.scale"].to(weight), grids[f"{name}.zero_point"].to(weight.device)
        try:
            found[name] = ScaledLayer(modules[name], before, rescaling.steps_of(weight, before, zero_point))
        except ValueError as error:
            raise UserError(f"recovery=scales: {name}: {error}, so it has no scales to train") from error
    return found


def train_scales(context: RepairContext, layers: Mapping[str, ScaledLayer], options: config.Training) -> History:
    """Trains the scales of layers on the work's text; all else is frozen, and the model as it was after.

    Args:
        context: the model, the text, the seed and the places; the teacher for objective=distill.
        layers: as `quantised` gives them; their `change` is trained in place.
        options: the training's.
    """
    from idp.recover.nets.scaled_linear import scaled

    loss = text_loss(context.loaded, options, context.teacher)

    def of(batch: torch.Tensor) -> torch.Tensor:
        with scaled(layers.values()):
            return loss.of(batch)

    return train_in(context, {name: layer.change for name, layer in layers.items()}, Loss(of, loss.spare), options)
