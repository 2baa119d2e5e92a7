"""Which tasks, with which documents; and what is asked of a suite of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Optional

from idp.config.options import option


@dataclass
class Task:
    names: list[str] = option("lm-eval task names; aliases: all, world_knowledge, commonsense, language_understanding")
    data_dir: Optional[str] = option("a folder with <task>/<split>.jsonl[.gz] in the hub's fields")
    fewshot: Optional[int] = option("examples before each question; null: the task's own", minimum=0, maximum=100)
    documents: Optional[int] = option("documents per task, evenly spaced; null: all", minimum=1)
    include_path: Any = option("a folder of lm-eval YAML files of your own, or a list of folders", default=None)
    documents_of: Optional[dict[str, Optional[int]]] = option(
        "at most so many documents of these tasks, or of each task of these groups; null: as task.documents says",
        default={},
    )
    fewshot_of: Optional[dict[str, int]] = option(
        "examples before each question of these tasks, or of the tasks of these groups, where task.fewshot is null",
        default={},
    )
    groups: Optional[dict[str, list[str]]] = option(
        "groups of tasks, or of lm-eval's groups, that are also scored as one: the mean over the group's tasks",
        default={},
    )
    open_book: Optional[dict[str, str]] = option(
        "tasks without a passage, each with the task that asks the same questions with it", default={}
    )


class Suite:
    """What is known of a set of tasks beside how they are defined; each is a file in `idp/tasks/known`.

    Attributes:
        aliases: names in `task.names` that stand for several tasks, in their order.
        stand_ins: of a task whose documents are nowhere to be had, one that asks alike; records say so.
        definitions: a folder with lm-eval's YAML definitions of tasks that lm-eval does not have. With the Python
            beside them they are part of the key of each score.
        source: what records call the place of documents that come with it.
        place: the same for messages.
    """

    aliases: ClassVar[Mapping[str, Sequence[str]]] = {}
    stand_ins: ClassVar[Mapping[str, str]] = {}
    definitions: ClassVar[Optional[Path]] = None
    source: ClassVar[str] = ""
    place: ClassVar[str] = ""

    def splits(self, dataset: str | None, name: str | None) -> dict[str, Callable[[], Any]]:
        """The documents that come with it, of a data set as tasks name it: by split a function that loads them as a
        `datasets.Dataset`. They are taken where the user's own folder has none, before the hub is asked.

        Args:
            dataset: a hub id, such as allenai/ai2_arc.
            name: the data set's configuration; None where there is one only.
        """
        return {}

    def note(self, dataset: str | None) -> str:
        """How those documents differ from the hub's, for the record; "" where they do not."""
        return ""

    def trouble(self) -> str:
        """Why it does not have the documents of a data set, for messages."""
        return "does not have it"
