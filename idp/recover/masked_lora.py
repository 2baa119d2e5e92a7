"""A low-rank update of a pruned model that leaves every zero where it is (PERP, 2312.15230; SQFT, 2410.03750).

own/update.safetensors    by the layer's name A [rank, in] and B [out, rank], float32, alpha / rank within them

On a model it is merged: a layer's weight becomes W + M * (B A), with M = (W != 0) read off the model itself.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from idp import config
from idp.config import WIDE, option
from idp.errors import UserError
from idp.models import LoadedModel
from idp.recover.context import RepairContext, RepairResult, train_in
from idp.recover.correction import Update
from idp.recover.objective import text_loss
from idp.recover.targets import (
    TARGETS,
    check_named,
    check_rank,
    check_targets,
    is_transposed,
    target_layers,
    update_numbers,
)
from idp.recover.training import named

if TYPE_CHECKING:
    import torch
    from torch import nn

FILE = "update.safetensors"
LEAST_SPARSITY = 0.1  # a grid of 8 bits has a zero in a hundred weights, dense numbers next to none


@dataclass
class MaskedLora(config.Trained):
    rank: int = option("rank of the update before it is masked", minimum=1, maximum=WIDE)
    alpha: float = option("the update is scaled by alpha / rank", minimum=1e-6, maximum=WIDE)
    targets: list[str] = option(TARGETS)

    part: ClassVar[str] = "masked_lora"
    adapts: ClassVar[bool] = True

    def check(self, place: str = "recovery") -> None:
        check_named(self.targets, place)
        super().check(place)

    def check_model(self, empty: LoadedModel) -> None:
        check_targets(empty, self.targets)
        check_rank(empty, self.targets, self.rank)
        if transposed := [name for name, layer in self._layers(empty).items() if is_transposed(layer)]:
            raise UserError(
                f"recovery=masked_lora: {transposed[0]} holds its weight transposed, which is not masked here; use"
                " recovery=lora"
            )

    def check_weights(self, sparsity: float, bits: float | None) -> None:
        if bits is not None:
            raise UserError(
                f"recovery=masked_lora: the weights lie on a grid of {bits:g} bits, which a merged update leaves, with"
                " all that it saved; use recovery=lora, whose update stays beside them"
            )
        if sparsity < LEAST_SPARSITY:
            raise UserError(
                f"recovery=masked_lora: {sparsity:.0%} of the compressed weights are zero, so there is no mask to keep;"
                " use a compressor that prunes, such as compressor=sparsegpt50, or recovery=lora"
            )

    def numbers(self, empty: LoadedModel) -> int:
        return update_numbers(empty.model, self.targets, self.rank)

    def make(self, context: RepairContext) -> RepairResult:
        from safetensors.torch import save_file

        options, scale = self.training, self.alpha / self.rank
        trained = self._start(context)
        with _in_place(context.loaded, trained, scale):
            loss = text_loss(context.loaded, options, context.teacher)
            label = context.label or f"masked lora r={self.rank}"
            told = replace(context, label=label, report=named(context.report, self.part))
            history = train_in(told, trained, loss, options)
        # The root of the scale in either factor, so that the files say all of it.
        written = {name: (value.detach() * scale**0.5).cpu().contiguous() for name, value in trained.items()}
        save_file(written, context.own / FILE)
        numbers = sum(value.numel() for value in trained.values())
        return RepairResult(None, numbers, numbers, {self.part: history})

    def _layers(self, loaded: LoadedModel) -> dict[str, nn.Module]:
        return target_layers(loaded.model, self.targets)

    def _start(self, context: RepairContext) -> dict[str, torch.nn.Parameter]:
        """A at random and B at zero, as LoRA's, by name: the model as it is."""
        import torch

        torch.manual_seed(context.seed)
        found = {}
        for name, layer in self._layers(context.loaded).items():
            rows, columns = layer.weight.shape
            a = torch.empty(self.rank, columns)
            torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5))
            device = layer.weight.device
            found[f"{name}.A"] = torch.nn.Parameter(a.to(device))
            found[f"{name}.B"] = torch.nn.Parameter(torch.zeros(rows, self.rank, device=device))
        return found

    @classmethod
    def attach(cls, loaded: LoadedModel, folder: Path) -> LoadedModel:
        import torch

        from idp.recover.nets.masked import masked_weight

        updates, layers = load(folder), dict(loaded.model.named_modules())
        with torch.no_grad():
            for name, (a, b) in updates.items():
                weight = getattr(layers.get(name), "weight", None)
                if weight is None or tuple(weight.shape) != (len(b), a.shape[1]):
                    raise UserError(
                        f"{folder / FILE}: {name} is {(len(b), a.shape[1])}, the model's"
                        f" {tuple(weight.shape) if weight is not None else 'is not there'}: it belongs to another model"
                    )
                merged = masked_weight(weight, a.to(weight.device), b.to(weight.device), 1.0)
                layers[name].weight = torch.nn.Parameter(merged, requires_grad=False)
        return loaded

    @classmethod
    def export(cls, saved: Path, folder: Path) -> str:
        shutil.copy(saved / FILE, folder)
        return (
            f"Under `own/{FILE}` are the matrices A and B by layer that repair it: a weight W becomes"
            " `torch.where(W == 0, W, W + B @ A)`, with every zero kept and nothing added at inference."
        )


def load(folder: Path) -> dict[str, Update]:
    """By the layer's name A [rank, in] and B [out, rank], whose product is what a weight gains where it is not zero.

    Raises:
        UserError: they cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / FILE)
        return {name[:-2]: (tensors[name], tensors[f"{name[:-2]}.B"]) for name in tensors if name.endswith(".A")}
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{folder / FILE}: the masked update cannot be read: {error}") from error


@contextlib.contextmanager
def _in_place(loaded: LoadedModel, trained: dict[str, torch.nn.Parameter], scale: float) -> Iterator[None]:
    """A block in which the model computes with the masked updates, through which gradients flow."""
    from idp.recover.nets.masked import MaskedLinear

    model = loaded.model
    layers = {name[:-2]: model.get_submodule(name[:-2]) for name in trained if name.endswith(".A")}
    try:
        for name, layer in layers.items():
            model.set_submodule(name, MaskedLinear(layer, trained[f"{name}.A"], trained[f"{name}.B"], scale))
        yield
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)
