"""The closed form on a model: its options, the pass over calibration text, and the updates of all layers.

The inputs are those that the compressed model's layers see, as it stands: no layer is repaired before the next one is
looked at, so the updates do not depend on one another and each is optimal for its own layer's inputs alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Optional

from idp.compress.activations import Observer
from idp.config import MANY, SEEDS, Calibration, option
from idp.errors import UserError
from idp.progress import progress
from idp.recover.targets import matrix, target_layers

if TYPE_CHECKING:
    import torch
    from torch import nn

    from idp.recover.context import RepairContext

log = logging.getLogger(__name__)

Update = tuple["torch.Tensor", "torch.Tensor"]  # A [rank, in], B [out, rank]
# Two models of one shape that have nothing to do with each other have a cosine of 0; two bits leave one above .8, nine
# weights of ten set to zero one above .5.
LEAST_COSINE = 0.1


@dataclass
class ClosedForm:
    """Options of a recovery that reads calibration text for the closed form; by default as much as the compressor."""

    damping: float = option(
        "of the closed form: added to the diagonal of the inputs' second moment, as a share of its mean",
        minimum=0.0,
        maximum=1e6,
        default=0.0,
        unsaid=True,
    )
    # They are part of a key as what is read, so that the same text has one key however it is said.
    samples: Optional[int] = option(
        "of the closed form: calibration sequences; null: compressor.calibration.samples",
        minimum=1,
        maximum=MANY,
        default=None,
        unsaid=True,
        decides=False,
    )
    sample_length: Optional[int] = option(  # not `length`, which prompts have: a sweep over both would set it, too
        "of the closed form: tokens per sequence; null: compressor.calibration.length",
        minimum=8,
        default=None,
        unsaid=True,
        decides=False,
    )
    draw: Optional[int] = option(
        "of the closed form: which calibration sequences are drawn, by their seed; null: compressor.calibration.seed",
        minimum=0,
        maximum=SEEDS,
        default=None,
        unsaid=True,
        decides=False,
    )

    def calibration(self, options: Calibration) -> Calibration:
        """What it reads of the run's calibration text."""
        given: dict[str, Any] = {"samples": self.samples, "length": self.sample_length, "seed": self.draw}
        return replace(options, **{name: value for name, value in given.items() if value is not None})


def corrections(context: RepairContext, targets: list[str], rank: int, damping: float) -> dict[str, Update]:
    """The best update of each target layer, float32 on the CPU; the model is as it was afterwards.

    Args:
        context: the compressed model, its calibration text, and the dense model.
        targets: as `idp.recover.targets.target_layers` takes them.
        rank: of each update.
        damping: as `idp.recover.closed_form.best_update` takes it.

    Raises:
        UserError: the dense model is not the one that was compressed.
    """
    from idp.compress.activations import observe
    from idp.compress.experts import stacked_experts
    from idp.compress.forward import decoder_layers

    model = context.loaded.model
    dense = context.dense().model
    layers = target_layers(model, targets)
    if stacked_experts(model):
        log.warning("recovery.targets: the experts of %s are stacked and stay as they are", type(model).__name__)
    check_belongs(layers, dense)
    products = Products()
    found: dict[str, Correction] = {}
    for name in layers:
        wide = matrix(layers[name]).shape[0] < matrix(layers[name]).shape[1]
        kind = Lacking if wide and alone(name, layers) else Correction
        found[name] = kind(dense.get_submodule(name), rank, damping, products)
    count = len(decoder_layers(model))
    with progress(count, context.label or f"closed form of rank {rank}", unit="layers") as bar:
        observe(model, context.calibration, found, done=lambda: bar.update(1))
    return {name: each.update for name, each in found.items()}


def alone(name: str, layers: Mapping[str, nn.Module]) -> bool:
    """Whether no layer beside it, in the same attention or MLP, takes inputs of its size: nobody shares its moment."""
    beside, size = name.rpartition(".")[0], matrix(layers[name]).shape[1]
    return not any(
        other != name and other.rpartition(".")[0] == beside and matrix(layer).shape[1] == size
        for other, layer in layers.items()
    )


def check_belongs(layers: Mapping[str, nn.Module], dense: nn.Module) -> None:
    """Refuses a dense model of which the layers, by name, are no compression.

    Raises:
        UserError: a layer is not there or of another shape, which is named; or the weights have nothing in common.
    """
    import torch

    theirs, where = dict(dense.named_modules()), "the dense model does not belong to the compressed one"
    product, sizes = 0.0, [0.0, 0.0]
    for name, layer in layers.items():
        other = getattr(theirs.get(name), "weight", None)
        if other is None:
            raise UserError(f"recovery: {where}: it has no {name}; give the model that was compressed as model=")
        if other.shape != layer.weight.shape:
            raise UserError(
                f"recovery: {where}: {name} is {list(other.shape)} there and {list(layer.weight.shape)} here; give the"
                " model that was compressed as model="
            )
        one, two = (weight.detach().flatten().float() for weight in (layer.weight, other.to(layer.weight.device)))
        product += float(torch.dot(one, two))
        sizes[0], sizes[1] = sizes[0] + float(torch.dot(one, one)), sizes[1] + float(torch.dot(two, two))
    cosine = product / max((sizes[0] * sizes[1]) ** 0.5, 1e-30)
    if not cosine >= LEAST_COSINE:
        raise UserError(
            f"recovery: {where}: the cosine of their weights is {cosine:.2f}, that of any two models; give the model"
            " that was compressed as model="
        )


class Products:
    """X'X of a batch of inputs, computed once for all layers that are given it: queries, keys and values."""

    def __init__(self) -> None:
        self._last: tuple[torch.Tensor, int, torch.Tensor] | None = None

    def of(self, inputs: torch.Tensor) -> torch.Tensor:
        """[in, in] in float32, of inputs [tokens, in]; to be read only.

        Products of a batch's few hundred inputs lose nothing there that an eigenvector would show, and take half of
        the time; sums over batches, which grow, are the observers' own, in float64.
        """
        if self._last is not None:
            last, version, product = self._last  # held, so that its memory is nobody else's
            same = (inputs.data_ptr(), inputs.shape, inputs.stride()) == (last.data_ptr(), last.shape, last.stride())
            if same and inputs.dtype == last.dtype and inputs._version == last._version == version:
                return product
        single = inputs.float()
        self._last = inputs, inputs._version, single.T @ single
        return self._last[2]


class Correction(Observer):
    """Gathers the second moment of one layer's inputs, and solves for its update once all have passed.

    Args:
        dense: the layer as it was before compression.
        rank, damping: as `idp.recover.closed_form.best_update` takes them.
        products: shared by all layers.
    """

    def __init__(self, dense: nn.Module, rank: int, damping: float, products: Products):
        self.dense, self.rank, self.damping, self.products = dense, rank, damping, products
        self.moment: torch.Tensor | None = None
        self.update: Update = None  # type: ignore[assignment]  # once it is finished

    def see(self, layer: nn.Linear, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        product = self.products.of(inputs)
        self.moment = product.double() if self.moment is None else self.moment.add_(product)

    def finish(self, layer: nn.Linear) -> None:
        here = matrix(layer).double()
        a, b = self.solve(matrix(self.dense).to(here) - here)
        self.update, self.moment = (a.float().cpu().contiguous(), b.float().cpu().contiguous()), None

    def solve(self, error: torch.Tensor) -> Update:
        """A and B, float64, of W_dense - W [out, in]."""
        from idp.recover.closed_form import best_update

        return best_update(error, self.moment, self.rank, self.damping)


class Lacking(Correction):
    """The same for a wide layer that shares its inputs with no other, such as the one that leads out of an MLP.

    The moment of what its outputs lack is summed up at once, [out, out]: half the work and a seventh of the memory of
    S on LLaMA-7B, whose down projection takes 11,008 inputs.
    """

    error: torch.Tensor | None = None
    energy = 0.0

    def see(self, layer: nn.Linear, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        if self.error is None:
            self.error = matrix(self.dense).to(layer.weight.device).float() - matrix(layer).float()
        inputs = inputs.float()
        lacking = inputs @ self.error.T
        product = lacking.T @ lacking
        self.moment = product.double() if self.moment is None else self.moment.add_(product)
        self.energy += float(inputs.double().square().sum())

    def solve(self, error: torch.Tensor) -> Update:
        from idp.recover.closed_form import best_update, update_of

        self.error = None
        if self.moment is None:
            return best_update(error, None, self.rank)
        return update_of(error, self.moment, self.rank, self.energy, self.damping)
