"""No repair: the compressed model as it is."""

from __future__ import annotations

from dataclasses import dataclass

from idp import config


@dataclass
class NoRecovery(config.Recovery):
    @property
    def repairs(self) -> bool:
        return False
