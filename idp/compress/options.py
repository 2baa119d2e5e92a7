"""The options of pruning and quantisation: how much, by which method, on which grid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Optional, Protocol

from idp import config, registry
from idp.config import n_of_m, option
from idp.errors import UserError


@dataclass
class Sparsity:
    method: Optional[str] = option(
        "how weights are pruned; null: not at all", choices=lambda: (None, *registry.kinds_of(config.Pruner))
    )
    level: float = option("share of weights set to zero", minimum=0.0, maximum=0.999)
    pattern: Optional[str] = option("N:M, such as 2:4; null: unstructured")

    @property
    def pruner(self) -> config.Pruner | None:
        return registry.kinds_of(config.Pruner)[self.method]() if self.method else None

    @property
    def label(self) -> str:
        if not self.method:
            return ""
        amount = f"_{self.pattern.replace(':', 'of')}" if self.pattern else f"{self.level * 100:g}"
        return f"{self.method}{amount}"

    def check(self) -> None:
        """Raises a UserError where the options do not go together."""
        level, method, pattern = self.level, self.method, self.pattern
        if pattern is not None:
            keep, of = n_of_m(pattern)
            if method is not None and abs(level - (1 - keep / of)) > 1e-6:
                raise UserError(
                    f"compressor.sparsity.level={level}: the pattern {pattern} sets {1 - keep / of:g} of the weights to"
                    f" zero; say compressor.sparsity.level={1 - keep / of:g}, or compressor.sparsity.pattern=null"
                )
        if method is None and (level > 0 or pattern is not None):
            given = f"pattern={pattern}" if pattern is not None else f"level={level}"
            raise UserError(
                f"compressor.sparsity.{given}: nothing would prune; add"
                f" compressor.sparsity.method={_either(registry.kinds_of(config.Pruner))}"
            )
        if method is not None and level == 0:
            raise UserError(
                f"compressor.sparsity.level=0: {method} would prune nothing; give a level between 0 and 1, or"
                " compressor.sparsity.method=null"
            )


@dataclass
class Quantization:
    method: Optional[str] = option(
        "how weights are rounded; null: not at all", choices=lambda: (None, *registry.kinds_of(config.Quantizer))
    )
    bits: Optional[int] = option("bits per weight; null: not quantised", choices=(2, 3, 4, 8, None))
    group_size: Any = option("weights that share a scale; -1: a whole row; auto: 128, 64 or 32, whichever divides")
    symmetric: bool = option("symmetric grid (no zero points)")
    actorder: Optional[str] = option(
        "GPTQ's activation ordering (act-order); static: columns with the largest inputs first; null: as they stand",
        choices=(None, "static"),
    )

    @property
    def quantizer(self) -> config.Quantizer | None:
        return registry.kinds_of(config.Quantizer)[self.method]() if self.method else None

    @property
    def label(self) -> str:
        if not self.method:
            return ""
        group = "" if self.group_size == "auto" else f"-g{self.group_size}"
        return f"{self.method}{self.bits}{group}{'-symmetric' if self.symmetric else ''}"

    def check(self) -> None:
        """Raises a UserError where the options do not go together."""
        size, quantizers = self.group_size, registry.kinds_of(config.Quantizer)
        if size != "auto" and not (isinstance(size, int) and not isinstance(size, bool) and (size == -1 or size > 0)):
            raise UserError(
                f"compressor.quantization.group_size={size}: use auto, -1 (a whole row) or a positive number"
            )
        if self.method is None and self.bits is not None:
            raise UserError(
                f"compressor.quantization.bits={self.bits}: nothing would quantise; add"
                f" compressor.quantization.method={_either(quantizers)}"
            )
        if self.method is not None and self.bits is None:
            raise UserError(
                f"compressor.quantization.bits is null: {self.method} needs compressor.quantization.bits=2, 3, 4 or 8"
            )
        if self.actorder is not None and not (self.quantizer and self.quantizer.orders):
            ordering = [name for name, each in quantizers.items() if each.orders]
            raise UserError(
                f"compressor.quantization.actorder={self.actorder}: only {_either(ordering)} goes through columns in an"
                " order; use null"
            )


class Methods(Protocol):
    """A compressor that has both."""

    sparsity: Sparsity
    quantization: Quantization

    @property
    def needs(self) -> frozenset[str]:
        """As `config.Compressor.needs`."""


def _either(names: Iterable[str]) -> str:
    *rest, last = names
    return f"{', '.join(rest)} or {last}" if rest else last
