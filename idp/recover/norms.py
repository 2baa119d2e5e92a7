"""Norms and biases alone are trained (PERP, 2312.15230; norm tweaking, 2309.02784; BitFit, 2106.10199).

The matrices stay as they were compressed: on their grid, with their zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from idp import config
from idp.config import option
from idp.errors import UserError
from idp.models import LoadedModel
from idp.recover.context import RepairContext, RepairResult
from idp.recover.values import train_values

if TYPE_CHECKING:
    from torch import nn

BOTH, NORMS, BIASES = "both", "norms", "biases"


@dataclass
class Norms(config.Trained):
    train: str = option(
        "norms: the weights of layer norms; biases: those of linear layers and of norms; both",
        choices=(BOTH, NORMS, BIASES),
    )

    part: ClassVar[str] = "norms"
    adapts: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return self.kind if self.train == BOTH else f"{self.kind}: {self.train}"

    def check_model(self, empty: LoadedModel) -> None:
        if self._names(empty):
            return
        wanted = "weights of norms and no biases" if self.train == BOTH else f"{self.train} that could be trained"
        there = [each for each in (NORMS, BIASES) if vectors(empty.model, each)]
        instead = f"recovery.train={there[0]}" if there else "another recovery"
        raise UserError(f"recovery.train={self.train}: {type(empty.model).__name__} has no {wanted}; use {instead}")

    def numbers(self, empty: LoadedModel) -> int:
        return sum(empty.model.get_parameter(name).numel() for name in self._names(empty))

    def make(self, context: RepairContext) -> RepairResult:
        names = self._names(context.loaded)
        values, history = train_values(context.named(self.part, self.label), names, self.training)
        return RepairResult(values=values, trainable=self.numbers(context.loaded), histories={self.part: history})

    def _names(self, loaded: LoadedModel) -> list[str]:
        return vectors(loaded.model, self.train)


def vectors(model: nn.Module, which: str = BOTH) -> list[str]:
    """The names of a model's trained vectors, as `model.named_parameters()` has them: a tied one once.

    Args:
        model: a causal language model; its weights need not be there.
        which: `norms`: weights of one dimension that a norm holds itself (Gemma's, to which 1 is added, are parameters
            like others). `biases`: those of linear layers and of norms. `both`.
    """
    found, seen = [], set()
    for name, parameter in _vectors(model, which):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            found.append(name)
    return found


def _vectors(model: nn.Module, which: str) -> Iterator[tuple[str, nn.Parameter]]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()  # the loss reads it as frozen
    for name, module in model.named_modules():
        if module is head:
            continue
        norm = is_norm(module)
        held = {"weight"} if norm and which != BIASES else set()
        if which != NORMS and (norm or isinstance(module, (nn.Linear, Conv1D))):
            held.add("bias")
        for part, parameter in module.named_parameters(recurse=False):
            if part in held and parameter.dim() == 1:
                yield f"{name}.{part}", parameter


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a layer norm or a root mean square norm: torch's, or transformers', each with a class of its
    own for nearly every family (`LlamaRMSNorm`, `Gemma2RMSNorm`, `Zamba2RMSNormGated`)."""
    from torch import nn

    return isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)) or "Norm" in type(module).__name__
