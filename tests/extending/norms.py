"""Norms and biases alone are trained (BitFit, Ben Zaken et al., 2106.10199); matrices stay as they were compressed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from idp import config
from idp.models import LoadedModel
from idp.recover.context import RepairContext, RepairResult
from idp.recover.values import train_values


@dataclass
class Norms(config.Trained):
    part: ClassVar[str] = "norms"
    adapts: ClassVar[bool] = True

    def make(self, context: RepairContext) -> RepairResult:
        names = self._names(context.loaded)
        values, history = train_values(context.named("norms", "norms and biases"), names, self.training)
        return RepairResult(values=values, trainable=self.numbers(context.loaded), histories={"norms": history})

    def numbers(self, empty: LoadedModel) -> int:
        return sum(empty.model.get_parameter(name).numel() for name in self._names(empty))

    def _names(self, loaded: LoadedModel) -> list[str]:
        return [name for name, parameter in loaded.model.named_parameters() if parameter.dim() == 1]
