"""A checkpoint that someone else compressed, of the same architecture as the model: `compressor=external`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idp import config
from idp.compress.compressors.pruning_quantization import PruningQuantization
from idp.config import WEIGHTS, Claims, option
from idp.errors import UserError


@dataclass
class External(PruningQuantization):
    """Its other options are those of compressing here, and stay as `compressor=none` has them."""

    kind: str = option("how the model is compressed; choose with compressor=...", default="external", unsaid=True)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({WEIGHTS})

    @property
    def label(self) -> str:
        return f"external-{Path((self.path or '').rstrip('/')).name.removesuffix('.gguf')}"

    def resolved(self) -> config.Compressor:
        return self

    def check(self) -> None:
        if not self.path:
            raise UserError(
                "compressor.path is not set: give a folder, hub id or GGUF file, such as"
                " compressor.path=/models/mine-4bit"
            )
        super().check()

    def find(self, store: Any = None) -> Any:
        from idp.compress import external

        return external.find_checkpoint(self, store)

    def check_model(
        self, empty: Any, *, model: config.Model | None = None, source: Any = None, store: Any = None
    ) -> None:
        from idp.compress import external

        assert model is not None
        external.check(self, source, model, empty, store)

    def identity(self, resolved: Any) -> dict[str, Any]:
        raise NotImplementedError("the content of its files is its identity: idp.compress.external.compress")

    def claims(self, resolved: Any) -> Claims:
        return Claims()

    def apply(self, context: Any) -> None:
        raise NotImplementedError("it takes what others made")

    @property
    def origin(self) -> str:
        return self.path or ""

    def fetch(self, source: Any, store: Any) -> Path:
        from idp.compress import external

        return external.place_of(self, source, store)

    def taken(self, source: Any, model: config.Model, dense: str) -> Any:
        from idp.compress import external

        return external.identity(self, source, model, dense)

    def take(self, source: Any, model: config.Model, dense: Any, store: Any) -> Any:
        from idp.compress import external

        return external.compress(self, source, model, dense, store)

    def settings(self) -> list[tuple[str, Any]]:
        return []
