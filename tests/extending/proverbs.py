"""Two tasks about proverbs, defined in the folder beside this file, with their documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from idp.config import Suite

ENDINGS = {"Many hands make": ("light work", "long days"), "Still waters run": ("deep", "dry")}


class Proverbs(Suite):
    aliases: ClassVar = {"proverbs": ("proverb_endings", "proverb_words")}
    definitions: ClassVar = Path(__file__).parent / "proverbs_tasks"
    source: ClassVar = "proverbs"
    place: ClassVar = "the module proverbs"

    def splits(self, dataset: str | None, name: str | None) -> dict[str, Callable[[], Any]]:
        return {"test": documents} if dataset == "proverbs" else {}


def documents() -> Any:
    from datasets import Dataset

    return Dataset.from_list(
        [{"begins": begins, "right": right, "wrong": wrong} for begins, (right, wrong) in ENDINGS.items()]
    )
