"""Several models on one set of weights: what a comparison of speed needs to have in memory at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idp.prompting.repaired import RepairedModel

if TYPE_CHECKING:
    from torch import nn


class Attached:
    """What putting a repair on a model replaced in it, which can be taken out and put back; nothing is copied.

    A block in which the repair is put on; what a module holds afterwards and did not before is the repair's. (PEFT's
    own switch leaves its layers in place, whose Python would be timed with the plain model.)

    Raises:
        ValueError: at the end of the block, where a parameter was written into: it could not be taken out again.
    """

    def __init__(self, model: nn.Module):
        self._modules = list(model.modules())

    def __enter__(self) -> Attached:
        self._before = [(held, dict(held)) for module in self._modules for held in _held(module)]
        tensors = (tensor for module in self._modules for tensor in module._parameters.values() if tensor is not None)
        self._versions = [(tensor, tensor._version) for tensor in tensors if not tensor.is_inference()]
        return self

    def __exit__(self, *raised: Any) -> None:
        if raised[0] is None and any(tensor._version != version for tensor, version in self._versions):
            raise ValueError("a repair was written into the model's parameters; put others in their place")
        self._places = [(held, before, after) for held, before in self._before if _differ(before, after := dict(held))]
        del self._before, self._versions

    def put(self, within: bool) -> None:
        """Puts the repair in the model's layers, or takes it out."""
        for held, before, after in self._places:
            held.clear()
            held.update(after if within else before)


def _held(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """What a module holds: a repair replaces something of it."""
    hooks = (module._forward_pre_hooks, module._forward_hooks)
    return (module._parameters, module._buffers, module._modules, *hooks)


def _differ(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return before.keys() != after.keys() or any(after[name] is not value for name, value in before.items())


class Variants(dict[str, RepairedModel]):
    """Models by name, all on the weights of one.

    Of those with a repair in their layers `ready` must be called before each use. `by_shape` names those whose own
    weights are not here: they run the same kernels on weights of the same shapes and dtype, so their time is that of
    the weights that stand in for them. It is not the time of one whose work depends on its values: with experts, the
    tokens go where the weights that are here send them.
    """

    def __init__(self, **variants: RepairedModel):
        super().__init__(variants)
        self.attached: Attached | None = None
        self.adapted: set[str] = set()
        self.by_shape: dict[str, str] = {}

    def stand_in(self, name: str, weights: str, repaired: RepairedModel) -> None:
        """Adds a model whose weights are not here: `repaired` runs on those of the variant `weights` for it."""
        self[name], self.by_shape[name] = repaired, weights

    def ready(self, name: str) -> RepairedModel:
        """The model of that name, its layers in place."""
        if self.attached is not None:
            self.attached.put(name in self.adapted)
        return self[name]
