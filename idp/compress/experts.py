"""Mixtures of experts: stacked expert weights taken apart into linear layers, and put together again.

transformers keeps the experts of a layer in two parameters of three dimensions, `gate_up_proj` and `down_proj`, which
no compressor sees, and writes them to a checkpoint expert by expert under names of its own. While a model is compressed
or measured, each expert is three `torch.nn.Linear` that share the stacked parameters' memory, so that every compressor,
and every figure of what it did, treats an expert's matrix as any other. Before it is saved they are stacked again.

A layout or an activation that is not held to the class's own forward is refused, and so is every other weight that a
compressor would leave dense without a word.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from idp.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STACKED = ("gate_up_proj", "down_proj")
PARTS = ("gate_proj", "up_proj", "down_proj")


class Expert(nn.Module):
    """One expert as three linear layers, whose weights are views of the stacked ones."""

    def __init__(self, stacked: nn.Module, number: int):
        super().__init__()
        rows = stacked.gate_up_proj.shape[1] // 2
        both = stacked.gate_up_proj.data[number]
        views = {"gate_proj": both[:rows], "up_proj": both[rows:], "down_proj": stacked.down_proj.data[number]}
        for part in PARTS:
            setattr(self, part, _linear(views[part]))


class LinearExperts(nn.Module):
    """The experts of a layer as linear layers: `0.gate_proj`, `0.up_proj`, `0.down_proj`, `1.gate_proj`, ...

    Each expert is called with the tokens that the router sends to it, and not at all where there are none.
    """

    def __init__(self, stacked: nn.Module):
        super().__init__()
        object.__setattr__(self, "stacked", stacked)  # kept, but no part of this module: its weights are not ours
        for number in range(stacked.gate_up_proj.shape[0]):
            self.add_module(str(number), Expert(stacked, number))

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """The weighted sum of the experts' outputs, [tokens, hidden].

        Args:
            hidden_states: [tokens, hidden].
            top_k_index: each token's experts, [tokens, k].
            top_k_weights: their weights, [tokens, k].
        """
        total = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self.children()):
            tokens, place = torch.where(top_k_index == number)
            if not len(tokens):
                continue
            states = hidden_states[tokens]
            gated = self.stacked._apply_gate(torch.cat([expert.gate_proj(states), expert.up_proj(states)], dim=-1))
            weighted = expert.down_proj(gated) * top_k_weights[tokens, place, None]
            total.index_add_(0, tokens, weighted.to(total.dtype))
        return total

    @torch.no_grad()
    def stack(self) -> nn.Module:
        """The class's own module again, with the experts' weights as they are now."""
        rows = self.stacked.gate_up_proj.shape[1] // 2
        for number, expert in enumerate(self.children()):
            both = self.stacked.gate_up_proj.data[number]
            for place, part in ((both[:rows], "gate_proj"), (both[rows:], "up_proj")):
                place.copy_(getattr(expert, part).weight)
            self.stacked.down_proj.data[number].copy_(expert.down_proj.weight)
        return self.stacked


@contextlib.contextmanager
def as_linear(model: nn.Module) -> Iterator[None]:
    """Within this, the experts of `model` are linear layers; what was done to them is in the model after it."""
    split(model)
    try:
        yield
    finally:
        stack(model)


def split(model: nn.Module) -> None:
    """Takes the experts of `model` apart, in place; nothing where there are none.

    Raises:
        UserError: they are of a kind whose layout or activation is not known to be the one that is computed here.
    """
    found = stacked_experts(model)
    for name, stacked in found.items():
        _check_layout(model, name, stacked)
    for name, stacked in found.items():
        model.set_submodule(name, LinearExperts(stacked))


def stack(model: nn.Module) -> None:
    """Undoes `split`, with the weights as they are now."""
    for name, module in [(name, module) for name, module in model.named_modules() if isinstance(module, LinearExperts)]:
        model.set_submodule(name, module.stack())


def stacked_experts(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that keep several experts' weights in parameters of three dimensions, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "down_proj", None), nn.Parameter) and module.down_proj.dim() == 3
    }


def routers(model: nn.Module) -> dict[str, nn.Module]:
    """What sends tokens to experts, by name: it stays as it is, as it is small and decides much.

    It stands beside the experts, is the only matrix of its kind there, and has a row for each of them (or a single one,
    for a shared expert's gate).
    """
    return {name: module for found in _routing(model).values() for name, module in found.items()}


def _routing(model: nn.Module) -> dict[str, dict[str, nn.Module]]:
    """The routers beside each module of experts, by its name."""
    found: dict[str, dict[str, nn.Module]] = {}
    for name, block in model.named_modules():
        for part, experts in block.named_children():
            if isinstance(experts, LinearExperts):
                counts = {1, len(list(experts.children()))}
                beside = found.setdefault(f"{name}.{part}", {})
                for sibling, child in block.named_children():
                    matrices = _matrices(f"{name}.{sibling}", child)
                    if child is not experts and len(matrices) == 1:
                        beside |= {at: each for at, each in matrices.items() if each.weight.shape[0] in counts}
    return found


def _matrices(name: str, module: nn.Module) -> dict[str, nn.Module]:
    inside = module.named_modules(prefix=name)
    return {at: each for at, each in inside if getattr(getattr(each, "weight", None), "ndim", 0) == 2}


def check_covered(model: nn.Module) -> None:
    """Refuses a model, its experts taken apart, of which a compressor would leave a matrix dense without a word.

    Raises:
        UserError: names the class and the first such weight.
    """
    for name, beside in _routing(model).items():
        if not beside:
            raise UserError(
                f"compressor: nothing beside the experts of {type(model).__name__} ({name}) looks like their router,"
                " which must stay as it is; use compressor=none"
            )
    for name, parameter in uncovered(model):
        inside = type(model.get_submodule(name.rpartition(".")[0])).__name__
        raise UserError(
            f"compressor: {type(model).__name__} keeps {name} {list(parameter.shape)} in a {inside}, which no"
            " compressor here knows and would leave dense; use compressor=none"
        )


def uncovered(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The matrices of `model` that are no linear layer's: names and weights of two dimensions or more.

    Embeddings, the head and routers are left out, which stay dense in every model; so are vectors.
    """
    head, routing = model.get_output_embeddings(), {id(module) for module in routers(model).values()}
    for name, module in model.named_modules():
        if module is head or id(module) in routing or isinstance(module, nn.Embedding):
            continue
        for part, parameter in module.named_parameters(prefix=name, recurse=False):
            linear = isinstance(module, nn.Linear) and part.endswith("weight")
            if not linear and sum(size > 1 for size in parameter.shape) > 1:
                yield part, parameter


@dataclass(frozen=True)
class Place:
    """Where a linear layer's weight is in the checkpoint that transformers writes: a tensor, or a slice of one."""

    tensor: str
    index: tuple[int | slice, ...] = ()

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[self.index] if self.index else tensor


def places(model: PreTrainedModel) -> dict[str, Place]:
    """Where each expert's weight goes when `model`, with its experts stacked, is saved, by `<layer>.weight`.

    Found by sending numbered rows through transformers' own conversion, whatever its names are.

    Raises:
        UserError: the checkpoint's layout is not one of whole matrices.
    """
    from transformers.core_model_loading import revert_weight_conversion

    found = {}
    for name, stacked in stacked_experts(model).items():
        _check_layout(model, name, stacked)
        experts, both, _ = stacked.gate_up_proj.shape
        down = stacked.down_proj.shape[1]
        ids = {  # two columns: transformers squeezes what has one
            f"{name}.gate_up_proj": torch.arange(experts * both).view(experts, both, 1).repeat(1, 1, 2),
            f"{name}.down_proj": torch.arange(experts * down).view(experts, down, 1).repeat(1, 1, 2),
        }
        wanted = _numbered(name, experts, both, down)
        for key, numbers in ids.items():
            for tensor, rows in revert_weight_conversion(model, {key: numbers}).items():
                for part, place in _recognized(tensor, rows, wanted[key]):
                    found[part] = place
        for part in [part for parts in wanted.values() for part in parts.values()]:
            if part not in found:
                raise UserError(
                    f"compressor: {type(stacked).__name__} of {type(model).__name__} is saved in a layout in which"
                    f" {part} is not a matrix; use compressor=none"
                )
    return found


def saved_routers(model: PreTrainedModel) -> list[str]:
    """The routers of `model`, whose experts are stacked, by the names that they have in a checkpoint."""
    from transformers.core_model_loading import revert_weight_conversion

    with as_linear(model):
        state = {f"{name}.weight": module.weight for name, module in routers(model).items()}
    return [name.removesuffix(".weight") for name in revert_weight_conversion(model, state)] if state else []


def _numbered(name: str, experts: int, both: int, down: int) -> dict[str, dict[tuple[int, int], str]]:
    """For each stacked parameter: the weight whose rows have the numbers from the first up to the second."""
    half = both // 2
    fused, single = {}, {}
    for number in range(experts):
        start = number * both
        fused[start, start + half] = f"{name}.{number}.gate_proj.weight"
        fused[start + half, start + both] = f"{name}.{number}.up_proj.weight"
        single[number * down, (number + 1) * down] = f"{name}.{number}.down_proj.weight"
    return {f"{name}.gate_up_proj": fused, f"{name}.down_proj": single}


def _recognized(tensor: str, rows: torch.Tensor, wanted: dict[tuple[int, int], str]) -> Iterator[tuple[str, Place]]:
    """Which of the wanted weights are in a tensor of numbered rows, and where in it."""
    if rows.shape[-1] != 2:
        return
    if rows.dim() == 2:
        first, last = int(rows[0, 0]), int(rows[-1, 0]) + 1
        if (first, last) in wanted and torch.equal(rows[:, 0], torch.arange(first, last)):
            yield wanted[first, last], Place(tensor)
    elif rows.dim() == 3:
        for number in range(rows.shape[0]):
            for (first, last), part in wanted.items():
                at = (rows[number, :, 0] == first).nonzero()
                if len(at) != 1:
                    continue
                inside = slice(int(at), int(at) + last - first)
                if torch.equal(rows[number, inside, 0], torch.arange(first, last)):
                    yield part, Place(tensor, (number, inside))


def _linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _check_layout(model: nn.Module, name: str, stacked: nn.Module) -> None:
    """Compares a small module of the same class with what `LinearExperts` makes of it.

    Raises:
        UserError: they differ, or the class cannot be asked.
    """
    try:
        difference = _difference(stacked)
    except Exception:  # whatever another layout makes of it
        difference = None
    if difference is None or not difference < 1e-5:
        raise UserError(
            f"compressor: the experts of {type(model).__name__} ({name}, {type(stacked).__name__}) are not of the kind"
            " that is known here (gate and up projection concatenated, no biases); use compressor=none"
        )


@torch.no_grad()
def _difference(stacked: nn.Module) -> float | None:
    """The largest difference between the class's own forward and `LinearExperts`, on numbers drawn here.

    None where the layout is another.
    """
    names = {name for name, _ in stacked.named_parameters()} | {name for name, _ in stacked.named_buffers()}
    if names != set(STACKED) or stacked.gate_up_proj.dim() != 3:
        return None
    experts, both, hidden = stacked.gate_up_proj.shape
    if stacked.down_proj.shape != (experts, hidden, both // 2) or both % 2:
        return None
    plain = getattr(type(stacked).forward, "__wrapped__", None)  # without a faster implementation behind it
    if plain is None:
        return None
    draw = torch.Generator().manual_seed(0)
    small = copy.copy(stacked)
    small.__dict__["_parameters"] = {
        "gate_up_proj": nn.Parameter(torch.randn(3, 16, 6, generator=draw)),
        "down_proj": nn.Parameter(torch.randn(3, 6, 8, generator=draw)),
    }
    small.__dict__["num_experts"] = 3
    states = torch.randn(10, 6, generator=draw)
    index = torch.stack([torch.randperm(3, generator=draw)[:2] for _ in range(10)])
    weights = torch.rand(10, 2, generator=draw)
    arguments: tuple[Any, ...] = (states, index, weights)
    return float((plain(small, *arguments) - LinearExperts(small)(*arguments)).abs().max())
