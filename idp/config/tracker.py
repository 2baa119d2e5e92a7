"""What a run asks of a tracker's options; each kind is a file in `idp/track`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from idp.config.options import option


@dataclass
class Tracker:
    """What a run asks of a tracker's options; each kind is a file in `idp/track`."""

    title: ClassVar[str] = ""  # what it is called in warnings; "": by its kind

    kind: str = option("where runs are followed; choose with tracker=...")
    study: Optional[str] = option("the study that the run is part of: a label, and its runs' W&B group")
    tags: list[str] = option("labels of your own, beside study, model, compressor, recovery and budget")

    def check(self) -> None:
        """Refuses options that could only fail later; nothing here.

        Raises:
            UserError: such options.
        """

    def start(self, run: Any) -> Any:
        """Begins to follow a run, an `idp.tracking.Followed`; whatever it raises becomes a warning.

        Returns:
            an `idp.tracking.Tracker`; None where nothing is to follow the run.
        """
        raise NotImplementedError
