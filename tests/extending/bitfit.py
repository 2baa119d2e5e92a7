"""Every vector is trained, norms and biases (BitFit, Ben Zaken et al., 2106.10199); matrices stay compressed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from idp import config
from idp.models import LoadedModel
from idp.recover.context import RepairContext, RepairResult
from idp.recover.values import train_values


@dataclass
class BitFit(config.Trained):
    part: ClassVar[str] = "bitfit"
    adapts: ClassVar[bool] = True

    def make(self, context: RepairContext) -> RepairResult:
        names = self._names(context.loaded)
        values, history = train_values(context.named("bitfit", "norms and biases"), names, self.training)
        return RepairResult(values=values, trainable=self.numbers(context.loaded), histories={"bitfit": history})

    def numbers(self, empty: LoadedModel) -> int:
        return sum(empty.model.get_parameter(name).numel() for name in self._names(empty))

    def _names(self, loaded: LoadedModel) -> list[str]:
        return [name for name, parameter in loaded.model.named_parameters() if parameter.dim() == 1]
