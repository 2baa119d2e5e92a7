"""Pruning and quantisation of every linear layer, by llmcompressor, one after the other or each alone.

`sparsity.method` and `quantization.method` are kinds of their own: files in `idp/compress/pruners` and
`idp/compress/quantizers`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Optional

from idp import config, registry
from idp.compress.options import Quantization, Sparsity
from idp.config import CALIBRATION, DENSE, Claims, option
from idp.errors import UserError

if TYPE_CHECKING:
    from idp.compress.context import CompressionContext

NAME = "pruning_quantization"


@dataclass
class PruningQuantization(config.Compressor):
    """`path` and `revision` are those of `compressor=external`, which was once no kind of its own."""

    kind: str = option("how the model is compressed; choose with compressor=...", default=NAME, unsaid=True)
    sparsity: Sparsity = field(default_factory=Sparsity)
    quantization: Quantization = field(default_factory=Quantization)
    path: Optional[str] = option("compressor=external: a folder, hub id or GGUF file that someone else compressed")
    revision: Optional[str] = option("compressor=external: hub revision: a branch, tag or commit")

    def resolved(self) -> config.Compressor:
        if self.path is None or self.label != "none":
            return self
        external = registry.kinds_of(config.Compressor)["external"]
        values = {name: value for name, value in vars(self).items() if name != "kind"}
        return external(**values)

    @property
    def needs(self) -> frozenset[str]:
        if not (self.sparsity.method or self.quantization.method):
            return frozenset()
        return frozenset({DENSE, CALIBRATION} if any(part.reads_text for part in self.parts.values()) else {DENSE})

    @property
    def parts(self) -> dict[str, Any]:
        found = {"sparsity": self.sparsity.pruner, "quantization": self.quantization.quantizer}
        return {name: part for name, part in found.items() if part is not None}

    @property
    def label(self) -> str:
        """Such as `gptq3`, `sparsegpt_2of4_gptq4-g128` or `none`."""
        return "_".join(filter(None, (self.sparsity.label, self.quantization.label))) or "none"

    def check(self) -> None:
        self.sparsity.check()
        self.quantization.check()
        for part in ("sparsity", "quantization"):
            if self.path is not None and getattr(self, part).method is not None:
                raise UserError(
                    f"compressor.path={self.path}: it is compressed already; drop compressor.{part}, or drop the path"
                )
        if self.path is None and self.revision is not None:
            raise UserError(f"compressor.revision={self.revision}: of what? Add compressor.path=<hub id>, or drop it")

    @property
    def operations(self) -> float:
        return max((part.operations for part in self.parts.values()), default=0.0)

    def check_model(
        self, empty: Any, *, model: config.Model | None = None, source: Any = None, store: Any = None
    ) -> None:
        from idp.compress import recipe

        recipe.check(self, empty.model)

    def resolve(self, model: Any) -> int | None:
        """The group size in use; None where nothing is quantised."""
        from idp.compress import recipe

        if not self.quantization.method:
            return None
        return recipe.resolve_group_size(self.quantization, recipe.given_layers(model))

    def identity(self, resolved: int | None) -> dict[str, Any]:
        sparsity, quantization = self.sparsity, self.quantization
        return {
            "sparsity": asdict(sparsity) if sparsity.method else None,
            "quantization": {**asdict(quantization), "group_size": resolved} if quantization.method else None,
        }

    def claims(self, resolved: int | None) -> Claims:
        sparsity, quantization = self.sparsity, self.quantization
        level, pattern = (sparsity.level, sparsity.pattern) if sparsity.method else (0.0, None)
        if not quantization.method:
            return Claims(level, pattern)
        return Claims(level, pattern, quantization.bits, resolved, quantization.symmetric, quantization.actorder)

    def apply(self, context: CompressionContext) -> None:
        from idp.compress import oneshot, recipe
        from idp.compress.terminal import counting

        modifiers = recipe.build(self, context.resolved, context.model)
        (context.folder / "recipe.yaml").write_text(recipe.as_yaml(modifiers), encoding="utf-8")  # goes with an export
        steps = [*modifiers, counting(context.bar)]
        if CALIBRATION in self.needs:
            watching = oneshot.Watching().of(*context.watched(modifiers))
            oneshot.run(context.model, [watching, *steps], context.blocks)
        else:
            oneshot.run(context.model, steps, None)
        for modifier in modifiers:
            context.scales |= getattr(modifier, "scales", {})

    def settings(self) -> list[tuple[str, Any]]:
        parts = (("sparsity", self.sparsity), ("quantization", self.quantization))
        return [
            (f"{part}: {key}", value)
            for part, options in parts
            if options.method
            for key, value in asdict(options).items()
            if value is not None
        ]
