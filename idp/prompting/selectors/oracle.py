"""An upper bound: the prompt under which the document scores best, chosen with the answer in hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from idp import config
from idp.errors import UserError


@dataclass
class OracleSelector(config.Selector):
    @property
    def peeks(self) -> bool:
        return True

    def build(self) -> Any:
        raise UserError(
            "recovery.selector=oracle chooses with the answers in hand: it can be evaluated, not used; take another"
            " selector of the same bank"
        )
