"""What a recovery is given to make a repair with, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from idp import config
from idp.beginning import Beginning, begun
from idp.errors import UserError
from idp.recover.fitting import Loss
from idp.recover.rescaling import Rescaled
from idp.recover.training import History, Report, named, train
from idp.store import Product

if TYPE_CHECKING:
    import torch

    from idp.corpora.corpus import Text
    from idp.models import LoadedModel
    from idp.prompting.bank import PromptBank
    from idp.recover.cached import CachedTeacher

    Teacher: TypeAlias = LoadedModel | CachedTeacher  # in memory, or what is kept of its predictions

OWN = "own"  # in a repair's folder: what its kind has saved itself


@dataclass(frozen=True)
class CalibrationText:
    """The text that a run calibrates on, and how much of it is read."""

    options: config.Calibration
    text: Text

    def blocks(self, loaded: LoadedModel) -> torch.Tensor:
        """Token ids [samples, length], those on which a compressor is calibrated; a BOS takes a sequence's last place.

        Raises:
            UserError: the text is too short.
        """
        from idp.corpora.corpus import blocks

        options = self.options
        found = blocks(self.text, "calibration", loaded.tokenizer, options.length, options.samples, options.seed)
        return begun(found, loaded.bos)[:, : options.length]

    def read_by(self, recovery: config.Recovery) -> CalibrationText:
        """The same, as much of it as a recovery reads."""
        return replace(self, options=recovery.calibration(self.options))

    def check(self, empty: LoadedModel) -> None:
        """Refuses text that is too short, given the model without weights.

        Raises:
            UserError: see above.
        """
        from idp.corpora.corpus import check_blocks

        options = self.options
        check_blocks(self.text, "calibration", empty.tokenizer, options.length, options.samples, options.seed)

    def identity(self) -> dict[str, Any]:
        """Its part of the key of what was made with it."""
        return {**asdict(self.options), "corpus": self.text.fingerprint}


@dataclass
class RepairContext:
    """The frozen model, and what the recovery `needs` beside it.

    Attributes:
        loaded: the compressed model; without weights, where the recovery does not need them.
        seed: of all that is random.
        checkpoint: a folder that survives a kill.
        folder: the product's own, where an adapter goes.
        text: TEXT: training and held-out blocks, each [blocks, tokens], of a recovery that trains.
        report: called with each step's figures, for live curves.
        teacher: the dense model, or what is kept of its predictions, of a recovery that trains toward it.
        label: what is said beside the progress bar, if not what the recovery itself would say.
        beginning: the BOS of every input, and its place about a prompt that is made.
        corpus: TEXT: all of the training text.
        calibration: CALIBRATION: token ids [samples, tokens].
        open_dense: DENSE: brings the dense model into memory.
        open_grids: GRID: reads `<layer>.scale` and `<layer>.zero_point` of each quantised layer, [rows, groups]; None
            where there are none.
    """

    loaded: LoadedModel
    seed: int
    checkpoint: Path
    folder: Path
    text: tuple[torch.Tensor, torch.Tensor] = None  # type: ignore[assignment]  # there, where a recovery trains
    report: Report | None = None
    teacher: Teacher | None = None
    label: str | None = None
    beginning: Beginning = None  # type: ignore[assignment]  # the model's, unless it is given
    corpus: Text | None = None
    calibration: torch.Tensor | None = None
    open_dense: Callable[[], LoadedModel] | None = None
    open_grids: Callable[[], dict[str, torch.Tensor] | None] | None = None

    def __post_init__(self) -> None:
        if self.beginning is None:
            self.beginning = Beginning(self.loaded.bos)

    @property
    def own(self) -> Path:
        """The folder for what the kind saves itself, and reads again in `Recovery.attach`."""
        place = self.folder / OWN
        place.mkdir(exist_ok=True)
        return place

    def dense(self) -> LoadedModel:
        """The dense model in memory, frozen, beside the compressed one: the teacher, where it is there as a model.

        It is freed when nobody holds it.
        """
        from idp.models import LoadedModel

        if isinstance(self.teacher, LoadedModel):
            return self.teacher
        if self.open_dense is None:
            raise ValueError("a recovery that reads the dense model says so: DENSE among its `needs`")
        return self.open_dense()

    def grid(self) -> dict[str, torch.Tensor]:
        """`<layer>.scale` and `<layer>.zero_point` of each quantised layer of the compressed model, [rows, groups].

        Raises:
            UserError: its weights lie on no grid that is known.
        """
        if self.open_grids is None:
            raise ValueError("a recovery that reads the quantisation grid says so: GRID among its `needs`")
        if (grids := self.open_grids()) is None:
            raise UserError(
                "recovery: the compressed model's weights lie on no quantisation grid that is known here; quantise"
                " here, such as with compressor=gptq4"
            )
        return grids

    def blocks(self, part: str, length: int, count: int | None = None) -> torch.Tensor:
        """Token ids [count, length] of the training text's `train` or `heldout` part, or all that there are.

        Raises:
            UserError: the text holds not one.
        """
        from idp.corpora.corpus import blocks

        if self.corpus is None:
            raise ValueError("a recovery that reads the training text says so: TEXT among its `needs`")
        return blocks(self.corpus, part, self.loaded.tokenizer, length, count, self.seed, at_most=True)

    def beginning_of_text(self, length: int) -> list[int]:
        """The first tokens of the training text, [length], in the order of documents that the seed draws."""
        return self.blocks("train", length, 1)[0].tolist()

    def named(self, name: str, label: str) -> RepairContext:
        """The same for one of several trainings: checkpoint and curves under its `name`; `label` unless it has one."""
        return replace(
            self, checkpoint=self.checkpoint / name, report=named(self.report, name), label=self.label or label
        )


def train_in(
    context: RepairContext, parameters: dict[str, torch.nn.Parameter], loss: Loss, options: config.Training
) -> History:
    """Trains `parameters` in place by the project's one loop, `idp.recover.training.train`, on the work's text."""
    return train(
        parameters,
        loss,
        *context.text,
        options,
        seed=context.seed,
        checkpoint=context.checkpoint,
        label=context.label or "training",
        report=context.report,
    )


@dataclass
class RepairResult:
    """What became of it: an input side, a weight side, and how they came about.

    Attributes:
        bank: the prompts.
        trainable: how many numbers were trained.
        adapter: how many numbers a PEFT adapter in the folder `adapter` has, or what was saved in `RepairContext.own`.
        histories: the curve of each training.
        searches: what searches tried.
        borrowed: whether the bank holds numbers that the model has already, such as its own embeddings.
        low_rank: by a linear layer's name the matrices A [rank, in] and B [out, rank] of an update: its weight becomes
            W + B A. It is stored as a PEFT adapter.
        values: new values of the model's own parameters, by their names.
        scales: by a quantised layer's name its scales as they were and as they are: its integers stay, and an export
            packs them with the new scales.
        whole: a stored repair that it is, whole, under another model.
    """

    bank: PromptBank | None = None
    trainable: int = 0
    adapter: int = 0
    histories: dict[str, History] = field(default_factory=dict)
    searches: dict[str, dict[str, Any]] = field(default_factory=dict)
    borrowed: bool = False
    low_rank: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    scales: dict[str, Rescaled] = field(default_factory=dict)
    whole: Product | None = None

    @property
    def added(self) -> int:
        """Numbers that the repair keeps beside the compressed model: new ones, and new values of the model's own."""
        changed = sum(a.numel() + b.numel() for a, b in self.low_rank.values())
        changed += sum(value.numel() for value in self.values.values())
        changed += sum(scales.after.numel() for scales in self.scales.values())
        prompts = self.bank.parameters if self.bank is not None and not self.borrowed else 0
        return self.adapter + changed + prompts

    def on(self, beneath: RepairResult) -> RepairResult:
        """Both together: this, which was made on the repaired model of the other, whose files are there already."""
        return replace(
            self,
            bank=self.bank if self.bank is not None else beneath.bank,
            trainable=self.trainable + beneath.trainable,
            adapter=self.adapter + beneath.adapter,
            histories=beneath.histories | self.histories,
            searches=beneath.searches | self.searches,
        )
