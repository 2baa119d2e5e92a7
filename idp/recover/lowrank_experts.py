"""A bank of low-rank corrections, one for each kind of text, of which each input goes by its own.

Calibration text falls into clusters, as prompts of `recovery/bank=cluster` are told apart. Expert e is of each layer
the update of a rank that best brings back the dense outputs on the text of cluster e, in closed form; it can be trained
from there on training text of its cluster.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from idp import config
from idp.config import CALIBRATION, DENSE, TEXT, WEIGHTS, WIDE, Choice, Fitting, Selector, controls_option, option, part
from idp.errors import UserError
from idp.models import LoadedModel
from idp.prompting.experts import Update
from idp.recover.context import RepairContext, RepairResult
from idp.recover.targets import (
    TARGETS,
    check_named,
    check_rank,
    check_targets,
    is_transposed,
    target_layers,
    update_numbers,
)
from idp.recover.text_clusters import TextClusters

if TYPE_CHECKING:
    import torch
    from torch import nn

BATCH = 8  # blocks of a forward pass whose hidden states are averaged


@dataclass
class LowrankExperts(config.Trained):
    experts: int = option("how many experts there are, one for each cluster of the calibration text", minimum=1)
    rank: int = option("rank of each expert's update of a layer", minimum=1, maximum=WIDE)
    targets: list[str] = option(TARGETS)
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
    train: bool = option("train each expert from there, on the training text that is nearest to its cluster")
    controls: bool = controls_option()
    selector: Selector = part(Selector)
    fit: Fitting = part(Fitting)

    part: ClassVar[str] = "experts"
    adapts: ClassVar[bool] = True
    seeded: ClassVar[bool] = True  # k-means is

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({CALIBRATION, DENSE, WEIGHTS}) | ({TEXT} if self.train else frozenset())

    @property
    def trains(self) -> bool:
        return self.train

    @property
    def texts(self) -> int:
        return self.experts

    def judged(self, prompts: int) -> int:
        return 1  # each sequence by the expert of its cluster

    def also_read(self, prompts: int, training: config.Training) -> int:
        return training.steps * training.batch_size * prompts + training.heldout_sequences

    @property
    def unused(self) -> set[str]:
        found = set() if self.train else {"training", "search"}
        return found | ({"shared", "restarts", "smallest"} if self.experts == 1 else set())

    def options(self) -> dict[str, Any]:
        return super().options() if self.train else config.Recovery.options(self)

    def candidate(self) -> LowrankExperts:
        """One expert, of all text."""
        return replace(self, experts=1)

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
        return self.experts * update_numbers(empty.model, self.targets, self.rank)

    def check(self, place: str = "recovery") -> None:
        check_named(self.targets, place)
        self.selector.check()
        self.selector.check_mixing([0] * self.experts)
        self.selector.check_members(prompts=False, experts=True)
        self.fit.check()
        if self.train:
            super().check(place)

    def check_model(self, empty: LoadedModel) -> None:
        check_targets(empty, self.targets)
        check_rank(empty, self.targets, self.rank)
        layers, name = self._layers(empty), type(empty.model).__name__
        if held := [name for name, layer in layers.items() if is_transposed(layer)]:
            raise UserError(
                f"recovery=lowrank_experts: {held[0]} holds its weight transposed, beside which no experts go; use"
                " recovery=lowrank"
            )
        if sent := [layer for layer in layers if _of_a_mixture(empty.model, layer)]:
            raise UserError(
                f"recovery.targets: {sent[0]} of {name} is one of a mixture's own experts, which see some rows' tokens"
                " only; name other layers, such as recovery.targets=[q_proj,k_proj,v_proj,o_proj]"
            )
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
        from idp.recover.expert_corrections import Corrections, belonging
        from idp.recover.expert_training import tune
        from idp.recover.lora import save
        from idp.recover.tuning import seed_of

        loaded, blocks = context.loaded, context.calibration
        assert blocks is not None  # it is needed
        clusters = self._clusters(context, blocks)
        dense = context.dense().model
        belongs = belonging(clusters.members, blocks)
        corrections = {
            name: Corrections(dense.get_submodule(name).weight, belongs, self) for name in self._layers(loaded)
        }
        observe(loaded.model, blocks, corrections)
        updates = [{name: each.pairs[expert] for name, each in corrections.items()} for expert in range(self.experts)]
        names, histories = self.bank_ahead([])[0], {}
        if self.train:
            for expert, (name, text) in enumerate(zip(names, clusters.shared_out(*context.text), strict=True)):
                own = replace(
                    context.named(name, f"{name} ({expert + 1} of {len(names)})"),
                    text=text,
                    seed=seed_of(context.seed, expert),
                )
                updates[expert], histories[name] = tune(own, updates[expert], self.training)
        for expert, each in enumerate(updates):
            save(loaded, each, place(context.own, expert))
        embeddings = loaded.model.get_input_embeddings().weight
        nothing = embeddings.new_zeros(0, embeddings.shape[1]).float()
        texts = [blocks[own] for own in clusters.members]
        bank = PromptBank([nothing] * self.experts, names, centres=centres(loaded, texts))
        bank.made = {"kind": "clusters of calibration text", "blocks": [len(text) for text in texts]}
        count = self.numbers(loaded)
        return RepairResult(bank, trainable=count if self.train else 0, adapter=count, histories=histories)

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

    def _layers(self, loaded: LoadedModel) -> dict[str, nn.Module]:
        return target_layers(loaded.model, self.targets)

    def _clusters(self, context: RepairContext, blocks: torch.Tensor) -> TextClusters:
        from idp.recover.banks.cluster import text_embeddings

        return TextClusters.find(
            blocks[:, len(context.loaded.bos) :],  # without their BOS, which is put there again
            lambda text: text_embeddings(context.loaded, text, BATCH),
            self.experts,
            restarts=self.restarts,
            smallest=self.smallest,
            seed=context.seed,
        )


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


def _of_a_mixture(model: nn.Module, name: str) -> bool:
    """Whether a layer is within a list of modules of a decoder layer: of the experts that tokens are sent to."""
    from torch import nn

    parts = name.split(".")
    above = [model.get_submodule(".".join(parts[:end])) for end in range(1, len(parts))]
    return sum(isinstance(module, nn.ModuleList) for module in above) > 1
