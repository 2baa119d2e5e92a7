"""An upper bound: the prompt under which the document scores best, chosen with the answer in hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from idp import config


@dataclass
class OracleSelector(config.Selector):
    graded: ClassVar[bool] = False

    @property
    def uses_labels(self) -> bool:
        return True
