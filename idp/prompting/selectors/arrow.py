"""The low-rank expert whose first input direction the hidden states align with (Arrow, Ostapenko et al., 2405.11157).

    s_e = mean over input tokens x and the layer's linear layers of |v_e' x|

v_e is the first right singular vector of B_e A_e.

Arrow chooses anew for every token and layer; here it is once for an input, as any selector, by one decoder layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from idp import config
from idp.config import option
from idp.errors import UserError
from idp.prompting.attention.group import TRUNK
from idp.prompting.experts import layers_of
from idp.prompting.packed import packed_attention
from idp.prompting.packing import pack
from idp.prompting.selectors.base import Selector

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from idp.prompting.expert_layer import ExpertLinear
    from idp.prompting.prefix import Prefixes


@dataclass
class ArrowSelector(config.Selector):
    layer: int = option("decoder layer whose inputs are compared with the experts of it", minimum=0)

    def check_members(self, prompts: bool, experts: bool) -> None:
        if not experts:
            raise UserError(
                f"recovery/selector={self.kind}: it reads the low-rank updates of experts, and prompts have none; use"
                " recovery=lowrank_experts, or another selector"
            )

    def check_model(self, model: Any, prompts: int | None = None) -> None:
        if self.layer >= model.num_hidden_layers:
            raise UserError(
                f"recovery.selector.layer={self.layer}: the model has layers 0 to {model.num_hidden_layers - 1}"
            )

    def build(self) -> Arrow:
        return Arrow(self.layer)


class Arrow(Selector):
    """See above; the layers below run without any expert."""

    def __init__(self, layer: int):
        self.layer = layer

    def bind(self, model: PreTrainedModel, prefixes: Prefixes) -> None:
        super().bind(model, prefixes)
        self.layers = [layer for name, layer in layers_of(model).items() if _number(name) == self.layer]
        if not self.layers:
            raise UserError(f"recovery.selector.layer={self.layer}: no layer there has experts")
        self.directions = [first_directions(layer) for layer in self.layers]

    def scores(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        import torch

        device = self.prefixes.lengths.device
        places = [range(len(context)) for context in contexts]
        trunks = [[TRUNK] * len(context) for context in contexts]
        packed = pack(contexts, places, trunks, None, None, self.model, device)
        found: dict[int, torch.Tensor] = {}

        def look(number: int, inputs: torch.Tensor) -> None:
            directions = self.directions[number].to(inputs.device)
            found[number] = (inputs.flatten(0, -2).float() @ directions.T).abs().to(device)  # [tokens, experts]
            if len(found) == len(self.layers):
                raise _Seen

        hooks = [
            layer.register_forward_pre_hook(lambda _, arguments, number=number: look(number, arguments[0]))
            for number, layer in enumerate(self.layers)
        ]
        try:
            with packed_attention(self.model, packed, None) as inputs:
                self.model.base_model(**inputs)
        except _Seen:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        each = torch.stack(list(found.values())).mean(0)
        order = sorted(range(len(contexts)), key=packed.starts.__getitem__)
        sizes = torch.tensor([len(contexts[row]) for row in order], device=device)
        scores = each.new_empty(len(contexts), each.shape[1])
        scores[order] = torch.segment_reduce(each, "mean", lengths=sizes, axis=0)
        return scores


class _Seen(Exception):
    """Ends a forward pass once all that is looked at has been seen."""


def first_directions(layer: ExpertLinear) -> torch.Tensor:
    """The first right singular vector of each expert's B A, [experts, in] float32; found in the space of its rank."""
    import torch

    found = []
    for expert in range(layer.experts):
        a, b = (matrix.double() for matrix in layer.update(expert))
        basis, of_a = torch.linalg.qr(a.T)  # A' = basis of_a
        right = torch.linalg.svd(torch.linalg.qr(b).R @ of_a.T).Vh
        found.append((basis @ right[0]).float())
    return torch.stack(found)


def _number(name: str) -> int | None:
    """Of which decoder layer a module is, by the first number in its name."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)
