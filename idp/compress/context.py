"""What a compressor is given to work on, and what it may leave beside the changed weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.compress.activations import Observer, Observers, observe
from idp.compress.dead import DeadInputs
from idp.compress.reach import Reach

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass
class CompressionContext:
    """The dense model in memory, to be changed in place.

    What is left in `layers` is frozen to plain numbers, saved, measured and compared with the dense weights, whatever
    made it.

    Attributes:
        model: the dense model of transformers, the experts of a mixture as linear layers.
        layers: the linear layers to compress, by name: all but the output head and routers.
        blocks: calibration text, token ids [samples, tokens].
        resolved: what the compressor's `check_model` gave.
        folder: the product's; what is written there is kept with it.
        bar: moves on by one with each decoder layer that is done.
        scales: `<layer>.input_scale` [in_features] by which a layer's columns were multiplied and
            `<layer>.output_scale` [out_features] by which its rows were divided, where that is undone elsewhere in the
            model: it is undone as well before weights are compared.
        grids: `<layer>.scale` and `<layer>.zero_point`, each [out_features, groups], of layers whose weights lie on the
            grid that is claimed; they are then stored, and exported, packed.
    """

    model: Any
    layers: dict[str, nn.Linear]
    blocks: torch.Tensor
    resolved: Any
    folder: Path
    bar: Any
    scales: dict[str, torch.Tensor] = field(default_factory=dict)
    grids: dict[str, torch.Tensor] = field(default_factory=dict)
    dead: dict[str, DeadInputs] = field(default_factory=dict)
    reach: dict[str, Reach] = field(default_factory=dict)

    def observe(self, observers: Observers, *, changing: bool = True) -> None:
        """Shows observers the inputs of their layers on the calibration text (`idp.compress.activations.observe`).

        Dead inputs and the tokens that reach each layer are counted on the way.

        Args:
            observers: by the name of their layer.
            changing: `finish` changes its layer's weight, and the layers behind it are shown what that makes.
        """
        together = {name: Together([each[name] for each in self.watched()]) for name in self.layers}
        for name, observer in observers.items():
            together.setdefault(name, Together([])).parts.append(observer)
        observe(self.model, self.blocks, together, changing=changing, done=self.layer_done)

    def watched(self, modifiers: Sequence[Any] = ()) -> tuple[Mapping[str, Observer], ...]:
        """The observers of every layer by which dead inputs and reach are recorded.

        Args:
            modifiers: of llmcompressor, which are calibrated on the identity where too few tokens reach a layer.
        """
        if not self.dead:
            self.dead = {name: DeadInputs() for name in self.layers}
            self.reach = {name: Reach(self.blocks.numel(), modifiers) for name in self.layers}
        return self.dead, self.reach

    def layer_done(self) -> None:
        """Moves the bar on."""
        if self.bar.n < self.bar.total:
            self.bar.update(1)


class Together(Observer):
    """Several observers of one layer, told in order."""

    def __init__(self, parts: list[Observer]):
        self.parts = parts

    def see(self, layer: nn.Linear, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        for part in self.parts:
            part.see(layer, inputs, outputs)

    def finish(self, layer: nn.Linear) -> None:
        for part in self.parts:
            part.finish(layer)
