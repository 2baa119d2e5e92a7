"""A bank of low-rank corrections, one for each kind of text, of which each input goes by its own; nothing is trained.

Calibration text falls into clusters, as prompts of `recovery/bank=cluster` are told apart. Expert e is of each layer the
update of a rank that best brings back the dense outputs on the text of cluster e, in closed form.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from idp import config
from idp.compress.activations import Observer
from idp.config import CALIBRATION, DENSE, WEIGHTS, WIDE, Choice, Fitting, Selector, controls_option, option, part
from idp.errors import UserError
from idp.models import LoadedModel
from idp.prompting.experts import Update
from idp.recover.context import RepairContext, RepairResult

if TYPE_CHECKING:
    import torch
    from torch import nn

BATCH = 8  # blocks of a forward pass whose hidden states are averaged


@dataclass
class LowrankExperts(config.Recovery):
    experts: int = option("how many experts there are, one for each cluster of the calibration text", minimum=1)
    rank: int = option("rank of each expert's update of a layer", minimum=1, maximum=WIDE)
    targets: list[str] = option("names of the linear layers that are corrected; []: all that compressors touch")
    damping: float = option(
        "added to the diagonal of the inputs' second moments, as a share of its mean", minimum=0.0, maximum=WIDE
    )
    shared: float = option(
        "how much of each expert's second moment is that of all text, from 0, its own alone, to 1, one for all",
        minimum=0.0,
        maximum=1.0,
    )
    restarts: int = option("starts of k-means, of which the best is kept", minimum=1)
    smallest: float = option(
        "a cluster with fewer blocks than this share of an equal one is filled up with the nearest of the others",
        minimum=0.0,
        maximum=1.0,
    )
    controls: bool = controls_option()
    selector: Selector = part(Selector)
    fit: Fitting = part(Fitting)

    needs: ClassVar[frozenset[str]] = frozenset({CALIBRATION, DENSE, WEIGHTS})
    adapts: ClassVar[bool] = True
    seeded: ClassVar[bool] = True  # k-means is

    @property
    def unused(self) -> set[str]:
        return {"shared", "restarts", "smallest"} if self.experts == 1 else set()

    @property
    def choice(self) -> Choice:
        return Choice(self.selector, self.fit, self.controls)

    def choosing(self, selector: Selector) -> LowrankExperts:
        return replace(self, selector=selector)

    @property
    def parts(self) -> dict[str, Any]:
        return {"selector": self.selector}

    def bank_ahead(self, lengths: list[int]) -> tuple[list[str], bool]:
        return [f"expert_{number}" for number in range(self.experts)], True

    def prompt_lengths(self, tokenizer: Any = None) -> list[int]:
        return [0] * self.experts

    def numbers(self, empty: LoadedModel) -> int:
        return self.experts * sum(self.rank * sum(layer.weight.shape) for layer in self._layers(empty).values())

    def check(self, place: str = "recovery") -> None:
        self.selector.check()
        self.selector.check_bank(prompts=False, experts=True)
        self.fit.check()
        super().check(place)

    def check_model(self, empty: LoadedModel) -> None:
        from idp.recover.lora import check_rank

        layers = self._layers(empty)
        name = type(empty.model).__name__
        if not layers:
            raise UserError(f"recovery=lowrank_experts: {name} has no torch.nn.Linear layers to correct")
        names = {layer.rpartition(".")[2] for layer in layers}
        if unknown := [target for target in self.targets if target not in names]:
            raise UserError(
                f"recovery.targets={self.targets}: no linear layer is called {', '.join(unknown)}; there are"
                f" {', '.join(sorted(names))}"
            )
        if sent := [layer for layer in layers if _of_a_mixture(empty.model, layer)]:
            raise UserError(
                f"recovery.targets: {sent[0]} of {name} is one of a mixture's own experts, which see some rows' tokens"
                " only; name other layers, such as recovery.targets=[q_proj,k_proj,v_proj,o_proj]"
            )
        check_rank(empty, sorted(names), self.rank)
        self.selector.check_model(empty.model.config.get_text_config(), self.experts)

    def check_calibration(self, samples: int) -> None:
        if samples < self.experts:
            raise UserError(
                f"recovery.experts={self.experts}: compressor.calibration.samples={samples} sequences cannot make as"
                " many clusters; raise that, or ask for fewer"
            )

    def make(self, context: RepairContext) -> RepairResult:
        from idp.compress.activations import observe
        from idp.prompting.bank import PromptBank
        from idp.recover.banks.cluster import centres
        from idp.recover.lora import save

        loaded, blocks = context.loaded, context.calibration
        assert blocks is not None  # it is needed
        members = self._members(context, blocks)
        belongs = _belonging(members, blocks)
        dense = context.dense().model
        corrections = {
            name: Correction(dense.get_submodule(name).weight, belongs, self) for name in self._layers(loaded)
        }
        observe(loaded.model, blocks, corrections)
        for expert in range(self.experts):
            save(loaded, {name: each.pairs[expert] for name, each in corrections.items()}, place(context.own, expert))
        hidden = loaded.model.get_input_embeddings().weight.shape[1]
        nothing = loaded.model.get_input_embeddings().weight.new_zeros(0, hidden).float()
        bank = PromptBank(
            [nothing] * self.experts, self.bank_ahead([])[0], centres=centres(loaded, [blocks[own] for own in members])
        )
        bank.made = {"kind": "clusters of calibration text", "blocks": [len(own) for own in members]}
        return RepairResult(bank, adapter=self.numbers(loaded))

    @classmethod
    def attach(cls, loaded: LoadedModel, folder: Path) -> LoadedModel:
        from idp.prompting import experts

        experts.attach(loaded.model, read(folder))
        return loaded

    @classmethod
    def export(cls, saved: Path, folder: Path) -> str:
        shutil.copytree(saved, folder, dirs_exist_ok=True)
        return (
            f"Under `{folder.name}/` are the low-rank experts that repair it, each an adapter for"
            " `PeftModel.from_pretrained(model, folder)`, of which one is used for an input. `idp.load` of this folder"
            " chooses; PEFT itself holds one for a whole batch."
        )

    def _layers(self, loaded: LoadedModel) -> dict[str, nn.Linear]:
        from idp.compress.recipe import compressed_layers

        layers = compressed_layers(loaded.model)
        named = {name: layer for name, layer in layers.items() if name.rpartition(".")[2] in self.targets}
        return named or layers

    def _members(self, context: RepairContext, blocks: torch.Tensor) -> list[torch.Tensor]:
        """The blocks of each expert's cluster, by number."""
        import torch

        from idp.recover.banks.cluster import fill_up, k_means, text_embeddings

        if self.experts == 1:
            return [torch.arange(len(blocks))]
        text = blocks[:, len(context.loaded.bos) :]  # without their BOS, which is put there again
        points = text_embeddings(context.loaded, text, BATCH)
        points = (points - points.mean(0)) / points.std(0, correction=0).clamp_min(1e-6)
        labels, middles = k_means(points, self.experts, self.restarts, context.seed)
        return fill_up(labels, torch.cdist(points, middles), self.smallest)


class Correction(Observer):
    """One layer's update for each expert, `pairs`, once its inputs have passed.

    Args:
        weight: the dense one.
        belongs: [tokens of the calibration text, experts], whether a token is of an expert's text.
        options: rank, damping and `shared`.
    """

    def __init__(self, weight: torch.Tensor, belongs: torch.Tensor, options: LowrankExperts):
        self.weight, self.belongs, self.options = weight, belongs, options
        self.seen, self.moments = 0, None

    def see(self, layer: nn.Linear, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        import torch

        size = inputs.shape[1]
        if self.moments is None:  # of each expert's inputs, and of all
            self.moments = torch.zeros(self.options.experts + 1, size, size, dtype=torch.float64, device=inputs.device)
        rows = self.belongs[self.seen : self.seen + len(inputs)].to(inputs.device)
        self.seen += len(inputs)
        inputs = inputs.double()
        for expert in range(self.options.experts):
            own = inputs[rows[:, expert]]
            self.moments[expert].addmm_(own.T, own)
        self.moments[-1].addmm_(inputs.T, inputs)

    def finish(self, layer: nn.Linear) -> None:
        from idp.recover.correction import correction

        assert self.moments is not None
        if self.seen != len(self.belongs):
            raise ValueError(f"a layer saw {self.seen} of {len(self.belongs)} tokens")
        counts, shared = self.belongs.sum(0).tolist(), self.options.shared
        every = self.moments[-1] / self.seen
        error = self.weight.to(layer.weight.device).double() - layer.weight.double()
        self.pairs: list[Update] = []
        for expert, count in enumerate(counts):
            moment = every if shared == 1 else (1 - shared) * self.moments[expert] / count + shared * every
            pair = correction(error, moment, self.options.rank, self.options.damping)
            self.pairs.append((pair[0].float().cpu(), pair[1].float().cpu()))
        self.moments = None


def place(folder: Path, expert: int) -> Path:
    """Where an expert's adapter is, in PEFT's format."""
    return folder / f"expert_{expert}"


def read(folder: Path) -> list[Mapping[str, Update]]:
    """Each expert's updates of layers by name, from the adapters that `lora.save` wrote.

    Raises:
        UserError: there is none, or one that cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found: list[Mapping[str, Update]] = []
    while (file := place(folder, len(found)) / "adapter_model.safetensors").is_file():
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: not a low-rank expert: {error}") from error
        names = sorted(
            name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            for name in tensors
            if name.endswith(".lora_A.weight")
        )
        sides = [[f"base_model.model.{name}.lora_{side}.weight" for side in "AB"] for name in names]
        found.append({name: (tensors[a], tensors[b]) for name, (a, b) in zip(names, sides, strict=True)})
    if not found:
        raise UserError(f"{folder}: there are no low-rank experts here")
    return found


def _belonging(members: list[torch.Tensor], blocks: torch.Tensor) -> torch.Tensor:
    """Whether each token is of each expert's text, [tokens, experts], in the order in which layers see them."""
    import torch

    belongs = torch.zeros(len(blocks), len(members), dtype=torch.bool)
    for expert, own in enumerate(members):
        belongs[own, expert] = True
    return belongs.repeat_interleave(blocks.shape[1], dim=0)


def _of_a_mixture(model: nn.Module, name: str) -> bool:
    """Whether a layer is within a list of modules of a decoder layer: of the experts that tokens are sent to."""
    from torch import nn

    parts = name.split(".")
    above = [model.get_submodule(".".join(parts[:end])) for end in range(1, len(parts))]
    return sum(isinstance(module, nn.ModuleList) for module in above) > 1
