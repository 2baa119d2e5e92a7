"""A run as lines of JSON in one file: its labels, each step of training, the scores, and how it ended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from idp import config
from idp.config import option
from idp.records import metrics
from idp.tracking import Followed


@dataclass
class Jsonl(config.Tracker):
    file: Optional[str] = option("where to; null: events.jsonl in the run's folder")

    def start(self, run: Followed) -> Lines:
        lines = Lines(Path(self.file) if self.file else run.folder / "events.jsonl", run.run_id)
        lines.write("start", **run.labels)
        return lines


class Lines:
    def __init__(self, file: Path, run: str):
        self.file, self.run = file, run

    def write(self, event: str, **values: Any) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "run": self.run, **values}) + "\n")

    def log(self, row: dict[str, float]) -> None:
        self.write("step", **row)

    def summary(self, record: Any, place: Path, repair: Path | None) -> None:
        self.write("summary", record=str(place), **metrics.summary(record))

    def finish(self) -> None:
        self.write("finish")

    def fail(self) -> None:
        self.write("fail")

    def stop(self) -> None:
        self.write("stop")
