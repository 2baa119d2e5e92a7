"""No tracker: the record on disk is all there is. W&B's options are taken and change nothing, so that a command or a
study that names some runs untracked by `tracker=none` alone."""

from __future__ import annotations

from dataclasses import dataclass

from idp.track.wandb import Wandb
from idp.tracking import Followed


@dataclass
class NoTracker(Wandb):
    def check(self) -> None:
        return None

    def start(self, run: Followed) -> None:
        return None
