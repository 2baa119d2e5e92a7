"""What measuring a model gave, as products of the store; in a plan, what they will be, as their identities."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from idp.store import Identity, Product, digest, peaks

Stored = TypeVar("Stored", bound=Product | Identity)  # what is there, or what will be


@dataclass
class Fidelity(Generic[Stored]):
    """Products by task and by corpus: of the dense model what it predicts, of others how far they are from that."""

    tasks: dict[str, Stored] = field(default_factory=dict)
    corpora: dict[str, Stored] = field(default_factory=dict)

    @property
    def products(self) -> list[Stored]:
        return [*self.tasks.values(), *self.corpora.values()]


@dataclass
class Measured(Generic[Stored]):
    """What one model scored: a product per task and per corpus."""

    name: str  # dense, compressed or repaired
    tasks: dict[str, Stored] = field(default_factory=dict)
    corpora: dict[str, Stored] = field(default_factory=dict)
    fidelity: Fidelity[Stored] | None = (
        None  # what it predicts, of the dense model; of others how far they are from that
    )

    @property
    def products(self) -> list[Stored]:
        return [*self.tasks.values(), *self.corpora.values()]

    def summary(self: Measured[Product]) -> dict[str, Any]:
        """Key of the scores; reuse and seconds of the stage as a whole."""
        made = self._made
        return {
            "key": digest([product.key for product in self.products]),
            "reused": all(product.reused for product in made),
            "seconds": round(sum(product.seconds for product in made), 3),
        }

    def peaks(self: Measured[Product]) -> dict[str, Any]:
        """The most memory that making any of it took: `peak_memory_bytes` and, of accelerators, `device_peak_bytes`."""
        return peaks(self._made)

    @property
    def _made(self) -> list[Stored]:
        return [*self.products, *(self.fidelity.products if self.fidelity is not None else [])]
