"""Norms and biases alone are trained (BitFit, Ben Zaken et al., 2106.10199); matrices stay as they were compressed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from idp import config
from idp.models import LoadedModel
from idp.recover.values import train_values
from idp.recover.work import Made, Work


@dataclass
class Norms(config.Trained):
    part: ClassVar[str] = "norms"
    adapts: ClassVar[bool] = True

    def make(self, work: Work) -> Made:
        names = self._names(work.loaded)
        values, history = train_values(work.named("norms", "norms and biases"), names, self.training)
        return Made(values=values, trainable=self.numbers(work.loaded), histories={"norms": history})

    def numbers(self, empty: LoadedModel) -> int:
        return sum(empty.model.get_parameter(name).numel() for name in self._names(empty))

    def _names(self, loaded: LoadedModel) -> list[str]:
        return [name for name, parameter in loaded.model.named_parameters() if parameter.dim() == 1]
