"""Low-rank adapters (Hu et al., 2106.09685) on the frozen compressed model, through PEFT."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from idp import config
from idp.config import CALIBRATION, DENSE, WIDE, option
from idp.errors import UserError
from idp.models import LoadedModel, weights
from idp.recover import lora_start
from idp.recover.context import RepairContext, RepairResult, train_in
from idp.recover.correction import ClosedForm, Update, corrections
from idp.recover.objective import text_loss
from idp.recover.targets import (
    ALL_LINEAR,
    TARGETS,
    check_named,
    check_rank,
    check_targets,
    is_transposed,
    linear_layers,
    matrix,
    target_layers,
    update_numbers,
)
from idp.recover.training import History, named

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass
class Lora(ClosedForm, config.Trained):
    rank: int = option("rank of the update", minimum=1, maximum=WIDE)
    alpha: float = option("the update is scaled by alpha / rank", minimum=0.0, maximum=WIDE)
    dropout: float = option("dropout before the update, in training", minimum=0.0, maximum=0.99)
    targets: list[str] = option(TARGETS)
    init: str = option(
        "zero: the model as it is; lowrank: the closed form of recovery=lowrank",
        choices=("zero", "lowrank"),
        default="zero",
        unsaid=True,
    )
    dora: bool = option(
        "DoRA (2402.09353): each output's size is trained apart from the direction of its weights",
        default=False,
        unsaid=True,
    )

    part: ClassVar[str] = "lora"
    method: ClassVar[str] = "lora"
    adapts: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | (frozenset({CALIBRATION, DENSE}) if self._solves else frozenset())

    @property
    def _solves(self) -> bool:
        """Whether it, or a candidate of its search, starts from the closed form."""
        return "lowrank" in (self.search.inits or [self.init])

    @property
    def unused(self) -> set[str]:
        return set() if self._solves else {"damping"}

    def check(self, place: str = "recovery") -> None:
        check_named(self.targets, place)
        if self._solves and self.alpha == 0:
            raise UserError(
                f"{place}.alpha=0: no update has an effect, so none can start from the closed form; raise it"
            )
        super().check(place)

    def check_model(self, empty: LoadedModel) -> None:
        check_targets(empty, self.targets)
        check_rank(empty, self.targets, self.rank)

    def numbers(self, empty: LoadedModel) -> int:
        layers = target_layers(empty.model, self.targets).values()
        sizes = sum(len(matrix(layer)) for layer in layers) if self.dora else 0
        return update_numbers(empty.model, self.targets, self.rank) + sizes

    def make(self, context: RepairContext) -> RepairResult:
        numbers, history = tune(context, self, self._start(context))
        return RepairResult(None, numbers, numbers, {"lora": history})

    def _start(self, context: RepairContext) -> Mapping[str, Update] | None:
        if self.init == "zero":
            return None
        return corrections(context, self.targets, self.rank, self.damping)


def tune(context: RepairContext, options: Lora, start: Mapping[str, Update] | None = None) -> tuple[int, History]:
    """Trains adapters and saves them in the folder `adapter` in PEFT's format; the model carries none afterwards.

    Args:
        context: the frozen model, the text, the places and the teacher for objective=distill; its seed draws the
            adapters' first values and the order of the blocks.
        options: rank, alpha, dropout, targets and training.
        start: the update that each layer starts from; None: none.

    Returns:
        the number of trained parameters, and the history.

    Raises:
        UserError: DoRA of a weight with a row of zeros, which has no direction.
    """
    import torch

    loaded, folder = context.loaded, context.folder / "adapter"
    check_targets(loaded, options.targets)
    torch.manual_seed(context.seed)
    adapted = adapt(loaded, options)
    try:
        if start is not None:
            lora_start.begin(adapted, start)
        if options.dora:
            lora_start.check_directions(adapted)
        parameters = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
        loss = text_loss(loaded, options.training, context.teacher, adapted)  # dropout in training steps only
        told = replace(context, label=context.label or f"lora r={options.rank}", report=named(context.report, "lora"))
        history = train_in(told, parameters, loss, options.training)
        adapted.save_pretrained(folder, save_embedding_layers=False)  # an adapted head stays the model's own
    finally:
        adapted.unload().eval()
    return sum(parameter.numel() for parameter in parameters.values()), history


def adapt(loaded: LoadedModel, options: Lora) -> PeftModel:
    """The model with fresh adapters in its layers, which alone are trained; their first values are torch's next."""
    from peft import LoraConfig, get_peft_model

    layers = target_layers(loaded.model, options.targets)
    with warnings.catch_warnings():
        # Where layers of both kinds are adapted PEFT sets it for each layer, and says so each time.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        return get_peft_model(
            loaded.model,
            LoraConfig(
                r=options.rank,
                lora_alpha=options.alpha,
                lora_dropout=options.dropout,
                target_modules=list(layers if ALL_LINEAR in options.targets else options.targets),
                # GPT-2's layers hold their weight transposed, [in, out].
                fan_in_fan_out=any(map(is_transposed, layers.values())),
                use_dora=options.dora,
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

    layers, ranks = linear_layers(loaded.model), {name: len(a) for name, (a, _) in updates.items()}
    for name, (a, b) in updates.items():
        if name not in layers:
            raise ValueError(f"low_rank: {name} is no linear layer of {type(loaded.model).__name__}")
        size = tuple(layers[name].weight.shape)
        if (len(b), a.shape[1]) != (size[::-1] if is_transposed(layers[name]) else size) or b.shape[1] != len(a):
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
                fan_in_fan_out=any(is_transposed(layers[name]) for name in updates),
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
