"""Low-rank experts in a model's linear layers, of which each input goes by its own.

    y = W x + sum_e w_e B_e (A_e x)

w is one-hot where one expert is chosen for an input, and any mixture is computed the same way. What an input goes by
comes with its prefix, as its prompt's keys and values do: `Prefixes.experts` for packed rows, a cache's `experts` for
others. So the choice of a prompt is that of an expert, whatever chooses, and a bank of experts alone has prompts of no
tokens. A pass that follows no prefix is that of the model without experts.
"""

from __future__ import annotations

import contextvars
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from idp.errors import UserError
from idp.prompting.attention.group import PADDING
from idp.prompting.following import end, start

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from idp.prompting.attention.group import Group
    from idp.prompting.expert_layer import ExpertLinear

Update = tuple["torch.Tensor", "torch.Tensor"]  # A [rank, in] and B [out, rank] of a linear layer


def of_tokens(groups: Sequence[Group], mixtures: torch.Tensor | None) -> torch.Tensor | None:
    """What each token of a packed sequence goes by, [tokens, experts]; None where its rows follow no expert.

    Args:
        groups: of the packed sequence, in order.
        mixtures: [prefixes, experts], what goes with each prefix; None where no prefix is followed, or none has any.
    """
    import torch

    if mixtures is None:
        return None
    rows = [
        group.prefix.repeat_interleave((group.branches != PADDING).sum(1))
        for group in groups
        if group.prefix is not None
    ]
    return mixtures[torch.cat(rows).to(mixtures.device)] if rows else None


def one_each(model: PreTrainedModel, prompts: int) -> torch.Tensor | None:
    """What prompt i of a bank goes by: expert i, [prompts, experts]; None where the model's layers have no experts.

    Raises:
        UserError: they have another number of experts: bank and experts are not of one repair.
    """
    import torch

    layers = layers_of(model)
    if not layers:
        return None
    count = next(iter(layers.values())).experts
    if count != prompts:
        raise UserError(f"a bank of {prompts} for a model with {count} experts: they are not of one repair")
    weight = model.get_input_embeddings().weight
    return torch.eye(count, dtype=weight.dtype, device=weight.device)


def layers_of(model: PreTrainedModel) -> dict[str, ExpertLinear]:
    """The layers that have experts, by name."""
    from idp.prompting.expert_layer import ExpertLinear

    return {name: module for name, module in model.named_modules() if isinstance(module, ExpertLinear)}


def attach(model: PreTrainedModel, experts: Sequence[Mapping[str, Update]]) -> None:
    """Puts experts on a model's linear layers, each layer in a module of its own that stands in its place.

    Args:
        model: the model; frozen tensors in its layers' dtype are added to it.
        experts: of each the update of every layer by its name; all of one rank in a layer.

    Raises:
        UserError: the model has no such layer, or one of another size: they belong to another model.
    """
    import torch

    from idp.prompting.expert_layer import ExpertLinear

    modules = dict(model.named_modules())
    for name in experts[0]:
        layer = modules.get(name)
        a, b = (torch.stack([expert[name][side] for expert in experts]) for side in (0, 1))
        size = (b.shape[1], a.shape[2])
        if layer is None or tuple(layer.weight.shape) != size:
            found = "no such layer" if layer is None else f"{tuple(layer.weight.shape)} there"
            raise UserError(
                f"experts: {name} of {size[0]} x {size[1]}, and {type(model).__name__} has {found}: they belong to"
                " another model"
            )
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, ExpertLinear(layer, a, b))
    hooks = _FollowsCache()
    for module in {id(each): each for each in (model, model.base_model)}.values():
        module.register_forward_pre_hook(hooks.before, with_kwargs=True)
        module.register_forward_hook(hooks.after, always_call=True)


class _FollowsCache:
    """Forward hooks of a model, by which a pass goes by what its cache holds of experts."""

    def __init__(self) -> None:
        self.tokens: list[contextvars.Token | None] = []

    def before(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        mixture = getattr(kwargs.get("past_key_values"), "experts", None)
        self.tokens.append(None if mixture is None else start(mixture))

    def after(self, module: Any, args: Any, output: Any) -> None:
        token = self.tokens.pop()
        if token is not None:
            end(token)
