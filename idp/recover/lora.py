"""Low-rank adapters (Hu et al., 2106.09685) on the frozen compressed model, through PEFT."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from idp import config
from idp.config import WIDE, option
from idp.errors import UserError
from idp.models import LoadedModel, weights
from idp.recover.context import RepairContext, RepairResult
from idp.recover.objective import text_loss
from idp.recover.training import History, Report, named, train

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

    from idp.recover.context import Teacher


@dataclass
class Lora(config.Trained):
    rank: int = option("rank of the update", minimum=1, maximum=WIDE)
    alpha: float = option("the update is scaled by alpha / rank", minimum=0.0, maximum=WIDE)
    dropout: float = option("dropout before the update, in training", minimum=0.0, maximum=0.99)
    targets: list[str] = option("names of the linear layers that are adapted")

    part: ClassVar[str] = "lora"
    method: ClassVar[str] = "lora"
    adapts: ClassVar[bool] = True

    def check(self, place: str = "recovery") -> None:
        if not self.targets:
            raise UserError(
                f"{place}.targets is empty: name the layers to adapt, such as {place}.targets=[q_proj,v_proj]"
            )
        super().check(place)

    def check_model(self, empty: LoadedModel) -> None:
        check_targets(empty, self.targets)
        check_rank(empty, self.targets, self.rank)

    def numbers(self, empty: LoadedModel) -> int:
        sizes = [
            module.weight.shape for name, module in _layers(empty).items() if name.rsplit(".", 1)[-1] in self.targets
        ]
        return sum(self.rank * sum(size) for size in sizes)

    def make(self, context: RepairContext) -> RepairResult:
        adapter, history = tune(
            context.loaded,
            self,
            context.text,
            context.folder / "adapter",
            checkpoint=context.checkpoint,
            label=context.label,
            seed=context.seed,
            report=named(context.report, "lora"),
            teacher=context.teacher,
        )
        return RepairResult(None, adapter, adapter, {"lora": history})


def tune(
    loaded: LoadedModel,
    options: Lora,
    text: tuple[torch.Tensor, torch.Tensor],
    folder: Path,
    *,
    seed: int,
    checkpoint: Path,
    label: str | None = None,
    report: Report | None = None,
    teacher: Teacher | None = None,
) -> tuple[int, History]:
    """Trains adapters and saves them in `folder` in PEFT's format.

    Args:
        loaded: the frozen model; it carries no adapters afterwards.
        options: rank, alpha, dropout, targets and training.
        text: training and held-out blocks, each [blocks, tokens].
        folder: where the adapter goes.
        seed: draws the adapters' first values and the order of the blocks.
        checkpoint: a folder that survives a kill.
        label: what is said beside the progress bar; None: the rank.
        report: called with each step's figures.
        teacher: the dense model, or what is kept of its predictions, for objective=distill.

    Returns:
        the number of trained parameters, and the history.
    """
    import torch

    check_targets(loaded, options.targets)
    torch.manual_seed(seed)
    adapted = adapt(loaded, options)
    parameters = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    try:
        history = train(
            parameters,
            text_loss(loaded, options.training, teacher, adapted),  # dropout in training steps only
            *text,
            options.training,
            seed=seed,
            checkpoint=checkpoint,
            label=label or f"lora r={options.rank}",
            report=report,
        )
        adapted.save_pretrained(folder, save_embedding_layers=False)  # an adapted head stays the model's own
    finally:
        adapted.unload().eval()
    return sum(parameter.numel() for parameter in parameters.values()), history


def adapt(loaded: LoadedModel, options: Lora) -> PeftModel:
    """The model with fresh adapters in its layers, which alone are trained; their first values are torch's next."""
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    adapted = [layer for name, layer in _layers(loaded).items() if name.rsplit(".", 1)[-1] in options.targets]
    with warnings.catch_warnings():
        # Where layers of both kinds are adapted PEFT sets it for each layer, and says so each time.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        return get_peft_model(
            loaded.model,
            LoraConfig(
                r=options.rank,
                lora_alpha=options.alpha,
                lora_dropout=options.dropout,
                target_modules=list(options.targets),
                # GPT-2's layers hold their weight transposed, [in, out].
                fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in adapted),
                task_type="CAUSAL_LM",
            ),
        )


def save(loaded: LoadedModel, updates: Mapping[str, tuple[torch.Tensor, torch.Tensor]], folder: Path) -> None:
    """Writes low-rank updates of linear layers in PEFT's format: `attach` then gives each layer W + B A.

    Args:
        loaded: the model that they are for, which is as it was afterwards.
        updates: by the layer's name A [rank, in] and B [out, rank]; ranks may differ.
        folder: where to.

    Raises:
        ValueError: a name that no linear layer has, or a shape that is not the layer's.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    layers, ranks = _layers(loaded), {name: len(a) for name, (a, _) in updates.items()}
    for name, (a, b) in updates.items():
        if name not in layers:
            raise ValueError(f"low_rank: {name} is no linear layer of {type(loaded.model).__name__}")
        size = tuple(layers[name].weight.shape)
        if (len(b), a.shape[1]) != (size[::-1] if isinstance(layers[name], Conv1D) else size) or b.shape[1] != len(a):
            raise ValueError(f"low_rank: {name} is {size}; its A is {tuple(a.shape)} and its B {tuple(b.shape)}")
    rank = max(ranks.values())
    other = {name: each for name, each in ranks.items() if each != rank}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        adapted = get_peft_model(
            loaded.model,
            LoraConfig(
                r=rank,
                lora_alpha=rank,  # a scale of 1
                rank_pattern=other,
                alpha_pattern=other,
                target_modules=list(updates),
                fan_in_fan_out=any(isinstance(layers[name], Conv1D) for name in updates),
                task_type="CAUSAL_LM",
            ),
        )
    try:
        for name, pair in updates.items():
            layer = loaded.model.get_submodule(name)
            for side, matrix in zip((layer.lora_A, layer.lora_B), pair, strict=True):
                side["default"].weight = torch.nn.Parameter(matrix.detach().float(), requires_grad=False)
        adapted.save_pretrained(folder, save_embedding_layers=False)
    finally:
        adapted.unload().eval()


def attach(loaded: LoadedModel, folder: Path, merge: bool = False) -> LoadedModel:
    """The model with a saved adapter in its layers, in the model's own dtype, frozen.

    Not merged, the adapter costs a little at every layer, and the compressed weights stay what they are. Merged, it
    costs nothing, and the weights lie on no grid any more.
    """
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        adapted = PeftModel.from_pretrained(loaded.model, folder, autocast_adapter_dtype=False)
    weights.check_adapter(folder, adapted)
    if merge:
        _untie_adapted_head(loaded.model)
    # Not merged, the layers now hold the adapter; the model itself stays the plain one that all other code knows.
    model = adapted.merge_and_unload() if merge else adapted.get_base_model()
    return replace(loaded, model=model.eval().requires_grad_(False))


def _untie_adapted_head(model: PreTrainedModel) -> None:
    """Gives an adapted head a weight of its own: merged into a tied one, the update would change the embedding."""
    import torch

    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    plain = getattr(head, "base_layer", None)
    if plain is not None and plain.weight is getattr(embeddings, "base_layer", embeddings).weight:
        plain.weight = torch.nn.Parameter(plain.weight.detach().clone(), requires_grad=False)


def check_targets(loaded: LoadedModel, targets: list[str]) -> None:
    """Refuses targets that match no linear layer.

    Raises:
        UserError: naming the layers that there are.
    """
    names = {name.rsplit(".", 1)[-1] for name in _layers(loaded)}
    if unknown := [target for target in targets if target not in names]:
        raise UserError(
            f"recovery.targets={targets}: no layer is called {', '.join(unknown)}; there are {', '.join(sorted(names))}"
        )


def _layers(loaded: LoadedModel) -> dict[str, nn.Module]:
    """The layers that an adapter can go on: linear ones, and GPT-2's, which hold their weight transposed."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return {name: module for name, module in loaded.model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}


def check_rank(loaded: LoadedModel, targets: list[str], rank: int) -> None:
    """Refuses a rank that an adapted layer's update cannot have.

    Raises:
        UserError: naming the smallest of those layers.
    """
    layers = {
        name: module.weight.shape for name, module in _layers(loaded).items() if name.rsplit(".", 1)[-1] in targets
    }
    name = min(layers, key=lambda name: min(layers[name]))
    rows, columns = layers[name]
    if rank > min(rows, columns):
        raise UserError(
            f"recovery.rank={rank}: {name} is {rows} x {columns}; use {min(rows, columns)} or less, or other targets"
        )
