"""The nine tasks of Hoang et al. (2310.00867), all at once or by what they ask for."""

from __future__ import annotations

from typing import ClassVar

from idp.config import Suite
from idp.records.scores import GROUPS


class NineTasks(Suite):
    aliases: ClassVar = GROUPS
    stand_ins: ClassVar = {"webqs": "nq_open"}  # both ask short questions about the world
