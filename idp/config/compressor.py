"""What the stages ask of a compressor's options; each kind is a file in `idp/compress/compressors`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Optional

from idp.config.model import Model
from idp.config.options import DENSE, MANY, SEEDS, option, values_of
from idp.errors import UserError


class Pruner:
    """A method of pruning, as `compressor.sparsity.method` names it; each is a file in `idp/compress/pruners`."""

    reads_text: ClassVar[bool] = False  # whether it looks at the layers' inputs on calibration text
    operations: ClassVar[float] = 3.0  # as `Compressor.operations`

    def modifier(self, sparsity: Any, layers: dict[str, Any], behind: list[Any]) -> Any:
        """The llmcompressor modifier that prunes.

        Args:
            sparsity: how much, and in which pattern.
            layers: the `torch.nn.Linear` modules to prune, by name.
            behind: the modifiers that quantise afterwards.
        """
        raise NotImplementedError


class Quantizer:
    """A method of rounding, as `compressor.quantization.method` names it; a file in `idp/compress/quantizers`."""

    reads_text: ClassVar[bool] = False  # whether it looks at the layers' inputs on calibration text
    operations: ClassVar[float] = 3.0  # as `Compressor.operations`
    orders: ClassVar[bool] = False  # whether it goes through columns in an order of its own: `actorder`

    def check_model(self, model: Any) -> None:
        """Raises a UserError where it cannot quantise a model, a transformers one whose weights need not be there."""

    def modifiers(self, quantization: Any, scheme: dict[str, Any], model: Any, keep_zeros: bool) -> list[Any]:
        """The llmcompressor modifiers that quantise, in order.

        Args:
            quantization: the options.
            scheme: `config_groups` and `ignore`, as llmcompressor's modifiers take them.
            model: the model that they will run on.
            keep_zeros: whether a pruner was there before, whose zeros must stay.
        """
        raise NotImplementedError


@dataclass
class Calibration:
    corpus: Optional[str] = option("a corpus by name, or a text file; null: the run's own corpus")
    samples: int = option("sequences", minimum=1, maximum=MANY)
    length: int = option("tokens per sequence", minimum=8)
    seed: int = option("which sequences are drawn, whatever the run's seed", minimum=0, maximum=SEEDS)


@dataclass(frozen=True)
class Claims:
    """What a compressor says of the weights that it leaves: held against them, and what their size follows from.

    Attributes:
        sparsity: the least share of zeros in every layer.
        pattern: N:M, in every group of M consecutive weights of a row at most N that are not zero.
        bits: of each weight on a uniform grid; None where weights are plain numbers.
        group_size: weights that share a scale; -1: a whole row.
        symmetric: whether the grid has no zero points.
        actorder: the order of columns, as a packed checkpoint says it.
    """

    sparsity: float = 0.0
    pattern: Optional[str] = None
    bits: Optional[int] = None
    group_size: Optional[int] = None
    symmetric: bool = True
    actorder: Optional[str] = None


@dataclass
class Compressor:
    """What the stages ask of a compressor's options; each kind is a file in `idp/compress/compressors`."""

    kind: str = option("how the model is compressed; choose with compressor=...")
    calibration: Calibration = field(default_factory=Calibration)

    @property
    def needs(self) -> frozenset[str]:
        """What it is made of, of `DENSE`, `CALIBRATION` and `WEIGHTS`; nothing: the dense model stays as it is.

        One that needs `DENSE` changes that model in place (`apply`), and is then measured on the calibration text.
        Where it needs `CALIBRATION` as well, that text decides what comes out.
        """
        return frozenset({DENSE})

    @property
    def label(self) -> str:
        """A short name made from what it does, for tables and run folders."""
        return self.kind

    @property
    def operations(self) -> float:
        """Of each of two passes over the calibration text, in those of a forward pass, where that text is read.

        As it is, a forward pass, and half of the second moments of the layers' inputs.
        """
        return 3.0

    @property
    def parts(self) -> dict[str, Any]:
        """What its options name that is of a kind as well, such as a pruner, by where; it decides the weights, too."""
        return {}

    def resolved(self) -> Compressor:
        """The options as the kind that they are of, where older ones did not say it."""
        return self

    def check(self) -> None:
        """Raises a UserError where the options do not go together."""

    def find(self, store: Any = None) -> Any:
        """Where weights that others made are, an `idp.models.ModelSource` known by its content; None: none wanted.

        Raises:
            UserError: they are not there.
        """
        return None

    def check_model(self, empty: Any, *, model: Model | None = None, source: Any = None, store: Any = None) -> None:
        """Checks the options against the model.

        Args:
            empty: the model without weights, an `idp.models.LoadedModel`.
            model: its config.
            source: what `find` gave.
            store: which knows what has been fetched.

        Raises:
            UserError: what does not fit.
        """

    def resolve(self, model: Any) -> Any:
        """What the options come to with this model of transformers, whose weights need not be there.

        Returns:
            plain JSON values, which `identity`, `claims` and `apply` are given; None where all is said by the options.
        """
        return None

    def identity(self, resolved: Any) -> dict[str, Any]:
        """All that decides the compressed weights, but for the model and the calibration text: its part of the key."""
        options = values_of(self)
        del options["calibration"]
        return {
            "compressor": {"kind": self.kind, **options},
            **({"resolved": resolved} if resolved is not None else {}),
        }

    def claims(self, resolved: Any) -> Claims:
        """What is claimed of the weights that it leaves."""
        return Claims()

    def apply(self, context: Any) -> None:
        """Changes the dense model in place: the weights of `context.layers`.

        Args:
            context: an `idp.compress.context.CompressionContext`.
        """
        raise NotImplementedError

    @property
    def origin(self) -> str:
        """Of one that needs `WEIGHTS`: what the user calls the place that they are from."""
        return self.label

    def fetch(self, source: Any, store: Any) -> Path:
        """Of one that needs `WEIGHTS`: the place of what `find` gave, downloaded if need be."""
        raise NotImplementedError

    def taken(self, source: Any, model: Model, dense: str) -> Any:
        """Of one that needs `WEIGHTS`: what `take` gives, an `idp.store.Identity`, by the key of the dense model."""
        raise NotImplementedError

    def take(self, source: Any, model: Model, dense: Any, store: Any) -> Any:
        """Of one that needs `WEIGHTS`: the product of what `find` gave, for the model of the product `dense`."""
        raise NotImplementedError

    def settings(self) -> list[tuple[str, Any]]:
        """Names and values of its options for a model card."""
        options = values_of(self)
        return [(name, value) for name, value in options.items() if name not in ("kind", "calibration")]


def n_of_m(pattern: str) -> tuple[int, int]:
    """N and M of a sparsity pattern `N:M`: in every M consecutive weights of a row at most N are not zero.

    Raises:
        UserError: it is not written so.
    """
    keep, _, of = str(pattern).partition(":")
    if not (keep.isdigit() and of.isdigit() and 0 < int(keep) < int(of)):
        raise UserError(f"compressor.sparsity.pattern={pattern}: use N:M with 0 < N < M, such as 2:4, or null")
    return int(keep), int(of)
