"""What can be said on the command line of an export."""

from __future__ import annotations

from dataclasses import dataclass

from idp.command import word


@dataclass
class ExportOptions:
    """`key=value` words; `record` and `out` must be there."""

    record: str = word("a run's record.json, or the folder that it is in")
    out: str = word("the folder to write; it must not exist or be empty")
    name: str | None = word("what adapters and card call the checkpoint, such as a hub id; else out", default=None)
    only: str | None = word(
        "repair: the adapters alone, for the checkpoint of compressor=external or the one that name says", default=None
    )
    store: str | None = word("the store of the run's artifacts, if it was moved", default=None)
    overwrite: bool = word("true: replace an earlier export", default=False)

    @property
    def called(self) -> str:
        """What adapters and card call the checkpoint."""
        return self.name or self.out
