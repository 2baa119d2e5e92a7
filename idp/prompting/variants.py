"""Several models on one set of weights: what a comparison of speed needs to have in memory at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from idp.prompting.repaired import RepairedModel

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class Adapters:
    """The adapters in a model's layers, which can be taken out and put back; nothing is copied or computed.

    PEFT's own switch leaves its layers in place, whose Python would be timed with the plain model.
    """

    def __init__(self, model: PreTrainedModel):
        self.places = list(_adapted(model))

    def put(self, within: bool) -> None:
        """Puts the adapters in the model's layers, or takes them out."""
        for parent, name, adapted in self.places:
            setattr(parent, name, adapted if within else adapted.get_base_layer())


def _adapted(model: PreTrainedModel) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            yield model.get_submodule(parent), child, module


class Variants(dict[str, RepairedModel]):
    """Models by name, all on the weights of one.

    Of those whose layers hold an adapter `ready` must be called before each use. `by_shape` names those whose own
    weights are not here: they run the same kernels on weights of the same shapes and dtype, so their time is that of
    the weights that stand in for them. It is not the time of one whose work depends on its values: with experts, the
    tokens go where the weights that are here send them.
    """

    def __init__(self, **variants: RepairedModel):
        super().__init__(variants)
        self.adapters: Adapters | None = None
        self.adapted: set[str] = set()
        self.by_shape: dict[str, str] = {}

    def stand_in(self, name: str, weights: str, repaired: RepairedModel) -> None:
        """Adds a model whose weights are not here: `repaired` runs on those of the variant `weights` for it."""
        self[name], self.by_shape[name] = repaired, weights

    def ready(self, name: str) -> RepairedModel:
        """The model of that name, its layers in place."""
        if self.adapters is not None:
            self.adapters.put(name in self.adapted)
        return self[name]
